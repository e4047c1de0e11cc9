"""The loop's side of the actors: objects that implement stargate.protocols over Ray actor handles.

EnginePool     Generate     in replica_pool.py: replicas, sessions, a dead engine
ScorerPool     Score        requests go to the scorer with the least work
TrainerGroup   Train        one call on every rank, progress polled from rank 0
WeightPusher   PushWeights  the same file into every Questioner engine, then their versions compared

Each takes the actors' own list of its actors and a supervisor. When an actor dies, its work is done
again: by the others, or by the one that the supervisor puts in its place. Without a supervisor
that is an EngineError.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from stargate.actors.rpc.remote import ActorDied, remote
from stargate.actors.rpc.replica_pool import EnginePool
from stargate.actors.rpc.wire import Records
from stargate.actors.runtime.file_transfer import FileAccess, SameFiles
from stargate.actors.runtime.supervisor import Supervisor
from stargate.config.run import ScorerConfig
from stargate.errors import EngineError
from stargate.monitoring.progress import Progress
from stargate.records.training_checkpoints import has_checkpoint, training_folder
from stargate.types import (
    PushResult,
    ScoreRequest,
    ScoreResult,
    TrainingExample,
    TrainResult,
)

T = TypeVar("T")

__all__ = ["EnginePool", "ScorerPool", "TrainerGroup", "WeightPusher", "remote"]

# Seconds between looks at the trainer's progress.
_POLL_SECONDS = 0.5
# How often one call is sent to another scorer: one that ends this many may well be what ends them.
_MAX_RESENDS = 3


class ScorerHangs(EngineError):
    """A scorer has not answered in time. It may live, but what it was sent must be sent again."""


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
        """What a call returns. Raises ScorerHangs; `num_tokens` were to be scored until then."""
        limit = self.seconds + num_tokens / self.tokens_per_s
        calling, timer = asyncio.ensure_future(call), asyncio.ensure_future(self.sleep(limit))
        try:
            await asyncio.wait({calling, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise ScorerHangs(
                    f"{name}: no answer after {limit:.0f} s, with {num_tokens} tokens to score "
                    "(scorer.timeout_s, scorer.min_tokens_per_s)"
                )
            return await calling
        finally:
            calling.cancel()
            timer.cancel()


class ScorerPool:
    """All scorers. Each merges what is waiting into batches by itself."""

    def __init__(
        self,
        scorers: Sequence[Any],
        supervisor: Supervisor | None = None,
        deadline: ScoreDeadline | None = None,
    ) -> None:
        """Without a deadline a scorer may take for ever."""
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
                return await self._score(scorer, number, requests)
            except (ActorDied, ScorerHangs) as error:
                if self._supervisor is None:
                    raise
                self._renew(number, scorer, error, self._supervisor)
                self._supervisor.counters.resent["scorer"] += len(requests)
                last = error
            finally:
                self._waiting_tokens[number] -= tokens
        raise EngineError(
            f"{requests[0].key} and {len(requests) - 1} more: {_MAX_RESENDS + 1} scorers died over "
            f"them; the last one: {last}"
        ) from last

    async def _score(
        self, scorer: Any, number: int, requests: Sequence[ScoreRequest]
    ) -> list[ScoreResult]:
        call: Awaitable[list[ScoreResult]] = remote(scorer.score.remote(Records(requests)))
        if self._deadline is None:
            return await call
        # What came before is scored before.
        return await self._deadline.watch(call, f"scorer-{number}", self._waiting_tokens[number])

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

    def _renew(self, number: int, scorer: Any, error: EngineError, supervisor: Supervisor) -> None:
        """Has a dead or hanging scorer replaced, once for all calls that it owed."""
        if number in self._renewing or self._scorers[number] is not scorer:
            return

        async def renew() -> None:
            if isinstance(error, ScorerHangs):
                await supervisor.replace_hung("scorer", number, scorer, error)
            else:
                await supervisor.replace("scorer", number, error)

        self._renewing[number] = asyncio.create_task(renew())
        # Nobody may ask again; then its error must not end up as a warning of asyncio's.
        self._renewing[number].add_done_callback(lambda task: task.cancelled() or task.exception())


class TrainerGroup:
    """The ranks of one DeepSpeed trainer. `models_dir` receives one folder per version.

    In `run_dir` they keep checkpoints of a training under way; None: they keep none.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        base_model_dir: Path,
        models_dir: Path,
        continue_training: bool,
        progress: Progress,
        supervisor: Supervisor | None = None,
        file_access: FileAccess | None = None,
        run_dir: Path | None = None,
    ) -> None:
        self._ranks = ranks
        self._run_dir = run_dir
        self._file_access = file_access or SameFiles()
        self._supervisor = supervisor
        self._start_dir = base_model_dir
        self._models_dir = models_dir
        self._continue = continue_training
        self._progress = progress
        self._num_notes = 0  # of the present stage, that were shown

    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
        """Trains on all ranks. Raises DivergenceError; then no folder of that version exists.

        When a rank dies, all are replaced and go on from the last checkpoint, or begin again: with
        the same examples, in the same order, so that they come to the same weights.
        """
        output = self._models_dir / f"m{version}"
        shared = ray.put(list(examples))
        while True:
            ranks = list(self._ranks)
            try:
                trained = await self._train(ranks, shared, output, version)
                break
            except (EngineError, RayTaskError) as error:
                # RayTaskError: the others' collective fails before Ray knows that a rank is gone.
                if self._supervisor is None:
                    raise
                if await self._supervisor.replace("trainer", 0, error) is ranks[0]:
                    raise  # all of them live: it was no death
                folder = self._run_dir and training_folder(self._run_dir, version)
                if not (folder and has_checkpoint(folder)):  # with one, the ranks say what they do
                    self._progress.say(f"training m{version} begins again")
        if self._continue:
            self._start_dir = output
        return trained

    async def _train(
        self, ranks: Sequence[Any], shared: Any, output: Path, version: int
    ) -> TrainResult:
        before = await remote(ranks[0].progress.remote())
        async with AsyncExitStack() as stack:
            here = str(self._start_dir)
            starts = [
                await stack.enter_async_context(self._file_access.bring(here, f"trainer-{number}"))
                for number in range(len(ranks))
            ]
            place = await stack.enter_async_context(self._file_access.collect(output, "trainer-0"))
            kept = await self._checkpoint_folder(len(ranks), version)
            calls = [
                rank.train.remote(shared, start, place, version, *kept)
                for rank, start in zip(ranks, starts, strict=True)
            ]
            watching = asyncio.create_task(self._watch(ranks[0], before.number))
            try:
                # All ranks are awaited together: when one fails, the others hang in a collective.
                results: list[TrainResult] = await asyncio.gather(*(remote(call) for call in calls))
            finally:
                watching.cancel()
                await asyncio.wait({watching})  # what it may have raised is only about the display
            with suppress(EngineError):  # it has done all that it was asked for
                self._say_notes(await remote(ranks[0].progress.remote()))
        trained = results[0]
        return trained if place == str(output) else replace(trained, model_dir=str(output))

    async def _checkpoint_folder(self, num_ranks: int, version: int) -> tuple[str, ...]:
        """Where the ranks keep checkpoints, as an argument; none if one can't write there."""
        if self._run_dir is None:
            return ()
        for number in range(num_ranks):
            if not await self._file_access.shares(self._run_dir, f"trainer-{number}"):
                self._progress.say(
                    f"no checkpoints while m{version} is trained: the node of trainer-{number} "
                    f"does not share {self._run_dir}"
                )
                return ()
        return (str(training_folder(self._run_dir, version)),)

    def _say_notes(self, state: Any) -> None:
        """Shows what rank 0 has to say, each note once."""
        for note in state.notes[self._num_notes :]:
            self._progress.say(note)
        self._num_notes = len(state.notes)

    async def _watch(self, rank: Any, before: int) -> None:
        """Shows a rank's steps until cancelled. `before` is the number of its last stage."""
        self._num_notes = 0
        while True:
            state = await remote(rank.progress.remote())
            if state.number > before:
                self._say_notes(state)
                if state.total_steps:
                    break
            await asyncio.sleep(_POLL_SECONDS)
        # Steps that a checkpoint had took no time now.
        done = state.first_step
        with self._progress.stage("train", state.total_steps - done, "steps") as stage:
            tokens = 0
            while True:
                self._say_notes(state)
                stage.advance(state.steps - done, state.tokens - tokens)
                done, tokens = state.steps, state.tokens
                if state.loss is not None:
                    stage.note(f"loss {state.loss:.3f}")
                if done >= state.total_steps:
                    return
                await asyncio.sleep(_POLL_SECONDS)
                state = await remote(rank.progress.remote())


class WeightPusher:
    """Pushes a saved model folder into every Questioner engine."""

    def __init__(
        self,
        engines: Sequence[Any],
        supervisor: Supervisor | None = None,
        file_access: FileAccess | None = None,
    ) -> None:
        self._engines = engines
        self._supervisor = supervisor
        self._file_access = file_access or SameFiles()

    async def __call__(self, model_dir: str, version: int) -> PushResult:
        """Loads the weights everywhere; an engine that dies of it is replaced and tried once more.

        Raises EngineError unless every engine reports `version`.
        """
        started = time.perf_counter()
        holding: dict[int, Any] = {}  # by place: the engine that took the weights
        phases: list[dict[str, float]] = []

        async def push_into(number: int) -> None:
            holding[number], took = await self._push_into(number, model_dir, version)
            phases.append(took)

        with (
            self._supervisor.weights.pushing(model_dir, version)
            if self._supervisor
            else nullcontext()
        ):
            # One that had taken them may be replaced while others still load theirs.
            while missing := [n for n, e in enumerate(self._engines) if holding.get(n) is not e]:
                await asyncio.gather(*(push_into(number) for number in missing))
        slowest = {name: max(phase.get(name, 0.0) for phase in phases) for name in phases[0]}
        return PushResult(
            version=version,
            num_engines=len(self._engines),
            seconds=time.perf_counter() - started,
            phases=slowest,
        )

    async def _push_into(
        self, number: int, model_dir: str, version: int
    ) -> tuple[Any, dict[str, float]]:
        """The engine at this place that took the weights, and its seconds by phase."""
        while True:
            engine = self._engines[number]
            try:
                # An engine that sees the saved folder reads that: it was just written, so it is
                # cached, and a copy into shared memory would take longer than the whole push.
                started = time.perf_counter()
                async with self._file_access.bring(model_dir, f"questioner-{number}") as folder:
                    brought = time.perf_counter() - started
                    took: dict[str, float] = await remote(
                        engine.load_weights.remote(folder, version)
                    )
                took = {"bring": brought, **took}
                reported = await remote(engine.reported_version.remote())
            except EngineError as error:
                if self._supervisor is None:
                    raise
                if await self._supervisor.replace("questioner", number, error) is engine:
                    raise  # it lives: it was no death
                self._supervisor.counters.resent["push"] += 1
                continue
            if reported != version:
                raise EngineError(
                    f"weight push: sent version {version}, questioner-{number} reports {reported}"
                )
            return engine, took
