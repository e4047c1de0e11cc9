"""The loop's side of the actors: objects that implement stargate.protocols over Ray actor handles.

GuardedPool     Generate     the engines of a role (replica_pool.py); texts by weights that the run
                             does not believe in are errors
GuardedWorkers  Play         the dialogue workers, their dialogues checked as texts are
ScorerPool      Score        in scorer_clients.py
TrainerGroup    Train        one call on every rank, progress polled from rank 0
WeightPusher    PushWeights  in weight_pusher.py

Each takes the actors' own list of its actors and a supervisor. When an actor dies, its work is done
again: by the others, or by the one that the supervisor puts in its place. Where somebody died too
often, nobody waits for ever but hears of that.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from stargate.actors.rpc.remote import remote
from stargate.actors.rpc.replica_pool import EnginePool, ReplicaPool
from stargate.actors.runtime.actor_slots import WORKER, HeldWeights
from stargate.actors.runtime.supervisor import Supervisor
from stargate.errors import EngineError
from stargate.monitoring.progress import Progress
from stargate.records.training_checkpoints import has_checkpoint, training_folder
from stargate.types import (
    Dialogue,
    DialoguePlan,
    GenerateRequest,
    Generation,
    TrainingExample,
    TrainResult,
)

# Seconds between looks at the trainer's progress.
_POLL_SECONDS = 0.5


class GuardedPool:
    """Generate: the engines of one role, whose texts are checked.

    A text by other weights than the run believes in would be recorded under a wrong version, so it
    is an EngineError. So is any request once an actor of the actors has died too often.
    """

    def __init__(self, role: str, engines: Sequence[Any], supervisor: Supervisor) -> None:
        """Only a Questioner's weights are ever replaced; other roles keep those they began with."""
        self._role = role
        self._supervisor = supervisor
        self._weights = supervisor.weights if role == "questioner" else HeldWeights("")
        self._pool = EnginePool(engines, replace=partial(supervisor.replace, role))
        supervisor.follow(role, self._pool)
        self._pool.on_resend = partial(_count_resent, supervisor, role)

    async def __call__(self, request: GenerateRequest) -> Generation:
        """Generates one text. Raises RecordDropped or EngineError."""
        self._supervisor.failure.check()
        before = self._weights.versions
        try:
            generation = await self._pool(request)
        except EngineError:
            # If somebody died too often, that is the reason to show.
            self._supervisor.failure.check()
            raise
        if generation.policy_version not in before | self._weights.versions:
            raise EngineError(
                f"{request.request_id}: written by weights version {generation.policy_version}, "
                f"but the {self._role}'s engines should hold {self._weights.current[1]}"
            )
        return generation


class GuardedWorkers:
    """Play: the dialogue workers. Their dialogues are checked as GuardedPool checks texts.

    The dialogues of one pair go to one worker, so that they meet in one engine's prefix cache.
    When a worker dies the others play its dialogues anew.
    """

    def __init__(self, workers: Sequence[Any], supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._pool: ReplicaPool[DialoguePlan, Dialogue] = ReplicaPool(
            workers, lambda plan: plan.pair.id, replace=partial(supervisor.replace, WORKER)
        )
        self._pool.on_resend = partial(_count_resent, supervisor, WORKER)

    async def __call__(self, plan: DialoguePlan) -> Dialogue:
        """Plays one dialogue. Raises RecordDropped or EngineError."""
        before = self._supervisor.weights.versions
        # A worker waits for a dead engine's successor, however long that takes.
        async with self._supervisor.failure.ends():
            dialogue = await self._pool(plan)
        if dialogue.policy_version not in before | self._supervisor.weights.versions:
            raise EngineError(
                f"{dialogue.id}: played by weights version {dialogue.policy_version}, but the "
                f"questioner's engines should hold {self._supervisor.weights.current[1]}"
            )
        return dialogue

    @property
    def num_calls(self) -> int:
        """Ray calls so far."""
        return self._pool.num_calls


def _count_resent(supervisor: Supervisor, role: str) -> None:
    supervisor.counters.resent[role] += 1


class TrainerGroup:
    """The ranks of one DeepSpeed trainer. `run_dir` receives a model folder per version, and
    checkpoints of a training under way.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        base_model_dir: Path,
        run_dir: Path,
        continue_training: bool,
        progress: Progress,
        supervisor: Supervisor,
    ) -> None:
        self._ranks = ranks
        self._run_dir = run_dir
        self._supervisor = supervisor
        self._start_dir = base_model_dir
        self._continue = continue_training
        self._progress = progress
        self._num_notes = 0  # of the present stage, that were shown

    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
        """Trains on all ranks. Raises DivergenceError; then no folder of that version exists.

        When a rank dies, all are replaced and go on from the last checkpoint, or begin again: with
        the same examples, in the same order, so that they come to the same weights.
        """
        output = self._run_dir / "models" / f"m{version}"
        shared = ray.put(list(examples))
        while True:
            ranks = list(self._ranks)
            try:
                trained = await self._train(ranks, shared, output, version)
                break
            except (EngineError, RayTaskError) as error:
                # RayTaskError: the others' collective fails before Ray knows that a rank is gone.
                if await self._supervisor.replace("trainer", 0, error) is ranks[0]:
                    raise  # all of them live: it was no death
                # With a checkpoint the ranks say what they do.
                if not has_checkpoint(training_folder(self._run_dir, version)):
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
                await stack.enter_async_context(
                    self._supervisor.file_access.bring(here, f"trainer-{number}")
                )
                for number in range(len(ranks))
            ]
            place = await stack.enter_async_context(
                self._supervisor.file_access.collect(output, "trainer-0")
            )
            kept = await self._checkpoint_folder(len(ranks), version)
            calls = [
                rank.train.remote(shared, start, place, version, kept)
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

    async def _checkpoint_folder(self, num_ranks: int, version: int) -> str | None:
        """Where the ranks keep checkpoints; None if one can't write there."""
        for number in range(num_ranks):
            if not await self._supervisor.file_access.shares(self._run_dir, f"trainer-{number}"):
                self._progress.say(
                    f"no checkpoints while m{version} is trained: the node of trainer-{number} "
                    f"does not share {self._run_dir}"
                )
                return None
        return str(training_folder(self._run_dir, version))

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
