"""What a run calls its actors by: engines and dialogue workers whose versions are checked.

request -> pool of a role -> text, only if by weights that the run believes in
an actor died too often -> `Supervisor.failure`, instead of waiting for ever
what a pool sends again -> the run's counters
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from stargate.actors.rpc.replica_pool import EnginePool
from stargate.actors.runtime.actor_slots import WORKER, HeldWeights
from stargate.actors.runtime.dialogue_worker import WorkerPool
from stargate.actors.runtime.supervisor import Supervisor
from stargate.errors import EngineError
from stargate.types import Dialogue, DialoguePlan, GenerateRequest, Generation


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
        self._resent = _Resent(role, supervisor)

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
        finally:
            self._resent.count(self._pool.num_resent)
        if generation.policy_version not in before | self._weights.versions:
            raise EngineError(
                f"{request.request_id}: written by weights version {generation.policy_version}, "
                f"but the {self._role}'s engines should hold {self._weights.current[1]}"
            )
        return generation


class GuardedWorkers:
    """Play: the dialogue workers. Their dialogues are checked as GuardedPool checks texts."""

    def __init__(self, workers: Sequence[Any], supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._pool = WorkerPool(workers, partial(supervisor.replace, WORKER))
        self._resent = _Resent(WORKER, supervisor)

    async def __call__(self, plan: DialoguePlan) -> Dialogue:
        """Plays one dialogue. Raises RecordDropped or EngineError."""
        before = self._supervisor.weights.versions
        try:
            # A worker waits for a dead engine's successor, however long that takes.
            async with self._supervisor.failure.ends():
                dialogue = await self._pool(plan)
        finally:
            self._resent.count(self._pool.num_resent)
        if dialogue.policy_version not in before | self._supervisor.weights.versions:
            raise EngineError(
                f"{dialogue.id}: played by weights version {dialogue.policy_version}, but the "
                f"questioner's engines should hold {self._supervisor.weights.current[1]}"
            )
        return dialogue


class _Resent:
    """Counts what a pool sends again in the counters of the run that it belongs to."""

    def __init__(self, role: str, supervisor: Supervisor) -> None:
        self._role = role
        self._supervisor = supervisor
        self._counted = 0

    def count(self, total: int) -> None:
        if total > self._counted:
            self._supervisor.counters.resent[self._role] += total - self._counted
            self._counted = total
