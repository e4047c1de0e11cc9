"""Score calls of several pairs in one Ray call, where they come so fast that this pays.

    pair -> 10 requests \\
    pair -> 10 requests  -> wait a moment -> one call -> each pair its own results
    pair -> 10 requests /

A Ray call costs about a millisecond on either side, as much as all else that the driver does for a
pair. A scorer merges what it is sent anyway. With few calls under way nothing waits.
"""

import asyncio
from collections.abc import Sequence

from stargate.protocols import Score
from stargate.types import ScoreRequest, ScoreResult

# With fewer calls than this under way none waits: the scorers may be idle.
_GATHERED_FROM = 8
# How long calls are gathered (seconds); scores of a pair take longer.
_PAUSE = 0.05
# Calls that travel together: few enough that several scorers get equal shares.
_MAX_TOGETHER = 4

_Waiting = tuple[Sequence[ScoreRequest], "asyncio.Future[list[ScoreResult]]"]


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
            if len(calls) == 1:
                _set_error(calls[0][1], error)
            else:  # whose fault it was, each hears for itself
                await asyncio.gather(*(self._send_together([call]) for call in calls))
            return
        start = 0
        for requests, waiter in calls:
            if not waiter.done():
                waiter.set_result(results[start : start + len(requests)])
            start += len(requests)


def _set_error(waiter: "asyncio.Future[list[ScoreResult]]", error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
