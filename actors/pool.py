"""The loop's side of the actors: objects that implement stargate.protocols over Ray actor handles.

EnginePool     Generate     a dialogue sticks to one replica (its prefix cache), a new one goes to
                            the least loaded
ScorerPool     Score        requests go to the scorer with the least work
TrainerGroup   Train        one call on every rank, progress polled from rank 0
WeightPusher   PushWeights  the same file into every Questioner engine, then their versions compared
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from stargate.errors import EngineError, StargateError
from stargate.progress import Progress
from stargate.types import (
    GenerateRequest,
    Generation,
    PushResult,
    ScoreRequest,
    ScoreResult,
    TrainingExample,
    TrainResult,
)

_Result = TypeVar("_Result")

# Sessions that a pool remembers. Far more than are in flight; an old one only loses its prefix
# cache.
_MAX_SESSIONS = 65_536
# Seconds between looks at the trainer's progress.
_POLL_SECONDS = 0.5


async def remote(call: Awaitable[_Result]) -> _Result:
    """Awaits a remote call.

    Raises our own errors as they were raised there; a dead actor is EngineError.
    """
    try:
        return await call
    except RayTaskError as error:
        if isinstance(error.cause, StargateError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise EngineError(f"an actor died: {' '.join(str(error).split())[:300]}") from error


class EnginePool:
    """The replicas of one role."""

    def __init__(self, engines: Sequence[Any]) -> None:
        self._engines = list(engines)
        self._in_flight = [0] * len(self._engines)
        self._sessions: OrderedDict[str, int] = OrderedDict()

    async def __call__(self, request: GenerateRequest) -> Generation:
        """Generates one text on the session's replica. Raises RecordDropped or EngineError."""
        with self._place(request.session) as number:
            result: Generation = await remote(self._engines[number].generate.remote(request))
            return result

    @contextlib.contextmanager
    def _place(self, session: str) -> Iterator[int]:
        number = self._sessions.get(session)
        if number is None:
            number = min(range(len(self._engines)), key=self._in_flight.__getitem__)
            self._sessions[session] = number
            if len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(session)
        self._in_flight[number] += 1
        try:
            yield number
        finally:
            self._in_flight[number] -= 1


class ScorerPool:
    """All scorers. Each merges what is waiting into batches by itself."""

    def __init__(self, scorers: Sequence[Any]) -> None:
        self._scorers = list(scorers)
        self._waiting_tokens = [0] * len(self._scorers)

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Gold log-probs in the order of the requests."""
        tokens = sum(len(r.context_ids) + sum(map(len, r.golds)) for r in requests)
        number = min(range(len(self._scorers)), key=self._waiting_tokens.__getitem__)
        self._waiting_tokens[number] += tokens
        try:
            results: list[ScoreResult] = await remote(
                self._scorers[number].score.remote(list(requests))
            )
            return results
        finally:
            self._waiting_tokens[number] -= tokens


class TrainerGroup:
    """The ranks of one DeepSpeed trainer. `models_dir` receives one folder per version."""

    def __init__(
        self,
        ranks: Sequence[Any],
        base_model_dir: Path,
        models_dir: Path,
        continue_training: bool,
        progress: Progress,
    ) -> None:
        self._ranks = list(ranks)
        self._start_dir = base_model_dir
        self._models_dir = models_dir
        self._continue = continue_training
        self._progress = progress

    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
        """Trains on all ranks. Raises DivergenceError; then no folder of that version exists."""
        output = self._models_dir / f"m{version}"
        before = await remote(self._ranks[0].progress.remote())
        shared = ray.put(list(examples))
        calls = [
            rank.train.remote(shared, str(self._start_dir), str(output), version)
            for rank in self._ranks
        ]
        watching = asyncio.create_task(self._watch(before.number))
        try:
            # All ranks are awaited together: when one fails, the others hang in a collective.
            results: list[TrainResult] = await asyncio.gather(*(remote(call) for call in calls))
        finally:
            watching.cancel()
            await asyncio.wait({watching})  # what it may have raised is only about the display
        if self._continue:
            self._start_dir = output
        return results[0]

    async def _watch(self, before: int) -> None:
        """Shows rank 0's steps until cancelled. `before` is the number of its last stage."""
        done = 0
        while True:
            state = await remote(self._ranks[0].progress.remote())
            if state.number > before and state.total_steps:
                break
            await asyncio.sleep(_POLL_SECONDS)
        with self._progress.stage("train", state.total_steps, "steps") as stage:
            tokens = 0
            while True:
                stage.advance(state.steps - done, state.tokens - tokens)
                done, tokens = state.steps, state.tokens
                if state.loss is not None:
                    stage.note(f"loss {state.loss:.3f}")
                if done >= state.total_steps:
                    return
                await asyncio.sleep(_POLL_SECONDS)
                state = await remote(self._ranks[0].progress.remote())


class WeightPusher:
    """Pushes a saved model folder into every Questioner engine."""

    def __init__(self, engines: Sequence[Any]) -> None:
        self._engines = list(engines)

    async def __call__(self, model_dir: str, version: int) -> PushResult:
        """Loads the weights everywhere.

        Raises EngineError unless every engine reports `version`.
        """
        started = time.perf_counter()
        # The engines read the saved folder itself: it was just written, so it is cached, and a copy
        # into shared memory would take longer than the whole push.
        phases: list[dict[str, float]] = await asyncio.gather(
            *(remote(e.load_weights.remote(model_dir, version)) for e in self._engines)
        )
        reported = await asyncio.gather(
            *(remote(engine.reported_version.remote()) for engine in self._engines)
        )
        if any(got != version for got in reported):
            raise EngineError(
                f"weight push: sent version {version}, the engines report {sorted(set(reported))}"
            )
        slowest = {name: max(phase.get(name, 0.0) for phase in phases) for name in phases[0]}
        return PushResult(
            version=version,
            num_engines=len(self._engines),
            seconds=time.perf_counter() - started,
            phases=slowest,
        )
