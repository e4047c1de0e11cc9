"""The scorers as one Score: requests go to the one with the least work, those of a dead one again.

    pair -> 10 requests \\
    pair -> 10 requests  -> GatheredScore: waits a moment -> one call -> ScorerPool -> a scorer
    pair -> 10 requests /                                 each pair its own results

Calls of several pairs travel in one Ray call where they come so fast that this pays: a call costs
about a millisecond on either side, as much as all else that the driver does for a pair. A scorer
merges what it is sent anyway. With few calls under way nothing waits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stargate.actors.rpc.remote import ActorDied, ActorHangs, remote, within
from stargate.actors.rpc.wire import Records
from stargate.actors.runtime.supervisor import Supervisor
from stargate.config.run import ScorerConfig
from stargate.errors import EngineError
from stargate.protocols import Score
from stargate.types import ScoreRequest, ScoreResult

T = TypeVar("T")

# How often one call is sent to another scorer: one that ends this many may well be what ends them.
_MAX_RESENDS = 3
# With fewer calls than this under way none waits: the scorers may be idle.
_GATHERED_FROM = 8
# How long calls are gathered (seconds); scores of a pair take longer.
_PAUSE = 0.05
# Calls that travel together: few enough that several scorers get equal shares.
_MAX_TOGETHER = 4

_Waiting = tuple[Sequence[ScoreRequest], "asyncio.Future[list[ScoreResult]]"]


@dataclass(frozen=True, slots=True)
class ScoreDeadline:
    """How long a scorer may take: longer, the more it was sent. `sleep` is the clock."""

    seconds: float
    tokens_per_s: float
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    @classmethod
    def of(cls, config: ScorerConfig) -> "ScoreDeadline":
        return cls(config.timeout_s, config.min_tokens_per_s)

    async def watch(self, call: Awaitable[T], name: str, num_tokens: int) -> T:
        """What a call returns. Raises ActorHangs; `num_tokens` were to be scored until then."""
        limit = self.seconds + num_tokens / self.tokens_per_s
        late = (
            f"{name}: no answer after {limit:.0f} s, with {num_tokens} tokens to score "
            "(scorer.timeout_s, scorer.min_tokens_per_s)"
        )
        return await within(call, limit, late, self.sleep)


class ScorerPool:
    """All scorers. Each merges what is waiting into batches by itself."""

    def __init__(
        self,
        scorers: Sequence[Any],
        supervisor: Supervisor,
        deadline: ScoreDeadline,
    ) -> None:
        self._scorers = scorers
        self._supervisor = supervisor
        self._deadline = deadline
        self._waiting_tokens = [0] * len(scorers)
        self._renewing: dict[int, asyncio.Task[None]] = {}

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Gold log-probs in the order of the requests. Raises EngineError when no scorer can."""
        if not requests:
            return []
        tokens = sum(len(r.context_ids) + sum(map(len, r.golds)) for r in requests)
        for _ in range(_MAX_RESENDS + 1):
            number = await self._choose()
            scorer = self._scorers[number]
            self._waiting_tokens[number] += tokens
            try:
                call: Awaitable[list[ScoreResult]] = remote(scorer.score.remote(Records(requests)))
                # What came before is scored before.
                owed = self._waiting_tokens[number]
                return await self._deadline.watch(call, f"scorer-{number}", owed)
            except (ActorDied, ActorHangs) as error:
                self._renew(number, scorer, error)
                self._supervisor.counters.resent["scorer"] += len(requests)
                last = error
            finally:
                self._waiting_tokens[number] -= tokens
        raise EngineError(
            f"{requests[0].key} and {len(requests) - 1} more: {_MAX_RESENDS + 1} scorers died over "
            f"them; the last one: {last}"
        ) from last

    async def _choose(self) -> int:
        """The scorer with the least work of those that live; waits for one if there is none.

        Raises what kept a dead one from being replaced.
        """
        while True:
            for number, task in list(self._renewing.items()):
                if task.done():
                    task.result()
                    del self._renewing[number]
            living = [n for n in range(len(self._scorers)) if n not in self._renewing]
            if living:
                return min(living, key=self._waiting_tokens.__getitem__)
            await asyncio.wait(self._renewing.values(), return_when=asyncio.FIRST_COMPLETED)

    def _renew(self, number: int, scorer: Any, error: EngineError) -> None:
        """Has a dead or hanging scorer replaced, once for all calls that it owed."""
        if number in self._renewing or self._scorers[number] is not scorer:
            return

        async def renew() -> None:
            if isinstance(error, ActorHangs):
                await self._supervisor.replace_hung("scorer", number, scorer, error)
            else:
                await self._supervisor.replace("scorer", number, error)

        self._renewing[number] = asyncio.create_task(renew())
        # Nobody may ask again; then its error must not end up as a warning of asyncio's.
        self._renewing[number].add_done_callback(lambda task: task.cancelled() or task.exception())


class GatheredScore:
    """A Score that gives calls on to another, several together."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._num_under_way = 0
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self.num_calls = 0

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Results in the order of the requests; raises what the other raises for them."""
        if not requests:
            return []
        self._num_under_way += 1
        try:
            if self._num_under_way <= _GATHERED_FROM:
                self.num_calls += 1
                return await self._score(requests)
            loop = asyncio.get_running_loop()
            results: asyncio.Future[list[ScoreResult]] = loop.create_future()
            self._waiting.append((requests, results))
            if self._timer is None:
                self._timer = loop.call_later(_PAUSE, self._send)
            return await results
        finally:
            self._num_under_way -= 1

    def _send(self) -> None:
        self._timer = None
        waiting = [one for one in self._waiting if not one[1].done()]  # not those cancelled
        self._waiting = []
        for start in range(0, len(waiting), _MAX_TOGETHER):
            task = asyncio.create_task(self._send_together(waiting[start : start + _MAX_TOGETHER]))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send_together(self, calls: Sequence[_Waiting]) -> None:
        merged = [request for requests, _ in calls for request in requests]
        self.num_calls += 1
        try:
            results = await self._score(merged)
        except Exception as error:
            if len(calls) > 1:  # whose fault it was, each hears for itself
                await asyncio.gather(*(self._send_together([call]) for call in calls))
            elif not (waiter := calls[0][1]).done():
                waiter.set_exception(error)
            return
        start = 0
        for requests, waiter in calls:
            if not waiter.done():
                waiter.set_result(results[start : start + len(requests)])
            start += len(requests)
