"""Changes how many engines a role has, while a run goes on.

    scale({"questioner": 3, "roleplayer": 1})
      fewer -> the last ones get no new requests, end those that they have, and are ended
      more  -> places are found before anything starts; then they are started beside the others,
               given the current weights, and work

Who joins and leaves is the supervisor's (supervisor.py); here it is where they go, and their end.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.actor_slots import ActorSlot
from stargate.actors.runtime.spawn import ActorGroup, ActorPlan, end_actors, engine_slot
from stargate.actors.runtime.supervisor import Supervisor
from stargate.config.run import EngineConfig
from stargate.errors import EngineError, MachineError
from stargate.resources.colocation import is_colocated
from stargate.resources.placement import cores_for_more, require_gpus
from stargate.resources.scale_request import ROLES, shown

_log = logging.getLogger(__name__)

# Seconds between lines that say what is awaited.
_SPEAK_SECONDS = 30.0

_Result = TypeVar("_Result")


class Scaler:
    """Adds engines to the actors and takes some away. One `scale` at a time."""

    def __init__(
        self,
        plan: ActorPlan,
        actor_group: ActorGroup,
        cores: Sequence[int],
        num_gpus: int,
        say: Callable[[str], None],
    ) -> None:
        """`cores` and `num_gpus` are this machine's; on a cluster its nodes tell theirs."""
        self._plan, self._actor_group = plan, actor_group
        self._machine_cores, self._num_gpus = cores, num_gpus
        self._say = say
        shares = (plan.placement.questioner_cores, plan.placement.roleplayer_cores)
        self._cores = {  # of the engines on this machine that are there, by name
            f"{role}-{number}": share
            for role, of_role in zip(ROLES, shares, strict=True)
            for number, share in enumerate(of_role)
        }

    @property
    def counts(self) -> dict[str, int]:
        """Engines of each role that get work."""
        return {role: len(self._actor_group.engines(role)) for role in ROLES}

    async def scale(self, targets: Mapping[str, int]) -> str:
        """Returns what there is then. Raises MachineError or EngineError: those that came until
        then stay, and so do those that were to be added after some had left.
        """
        before = self.counts
        if is_colocated(self._plan.config):
            raise MachineError(
                "cluster.strategy is 'colocated': its engines share one GPU, none can be added"
            )
        wanted = {**before, **targets}
        adding = [(r, n) for r in ROLES for n in range(before[r], wanted[r])]
        leaving = [r for r in ROLES for _ in range(wanted[r], before[r])]
        if self._plan.cluster is None:  # before anything is taken away
            self._places_here(adding, wanted)
        for role in leaving:
            await self._take_out(role)
        if adding:
            await self._add(adding, wanted)
        return f"now {shown(self.counts)}"

    async def _take_out(self, role: str) -> None:
        name = f"{role}-{self.counts[role] - 1}"
        actor_group = self._actor_group
        retiring = self._supervisor.retire(role, actor_group.leaving)
        await self._aloud(retiring, f"{name}: still ends what it has under way")
        done = ""
        with contextlib.suppress(EngineError):  # it died while it was leaving
            stats = await remote(actor_group.leaving[0].stats.remote())
            done = f", after {stats.num_requests} requests"
        await end_actors(actor_group.leaving)  # only one leaves at a time
        actor_group.leaving.clear()
        self._forget(name)
        self._tell(f"{name} has left{done}")

    async def _add(self, adding: Sequence[tuple[str, int]], wanted: Mapping[str, int]) -> None:
        names = [f"{role}-{number}" for role, number in adding]
        try:
            places = await self._find_places(adding, wanted)
            self._cores.update(zip(names, places, strict=True))
            self._tell(f"starting {', '.join(names)}; the others go on")
            slots = [self._slot(*one, cores) for one, cores in zip(adding, places, strict=True)]
            await self._aloud(self._supervisor.add(slots), f"{', '.join(names)}: not all there yet")
        except BaseException:
            there = {f"{role}-{n}" for role, count in self.counts.items() for n in range(count)}
            for name in set(names) - there:
                self._forget(name)
            raise

    async def _find_places(
        self, adding: Sequence[tuple[str, int]], wanted: Mapping[str, int]
    ) -> list[str | None]:
        """The cores of each, if they are on this machine and pinned. Raises MachineError."""
        cluster = self._plan.cluster
        if cluster is None:
            return self._places_here(adding, wanted)
        settings = {f"{role}-{n}": self._engine(role).cpu_cores for role, n in adding}
        what = f"{', '.join(settings)}: still waiting for a node"
        await self._aloud(cluster.seat_more(settings), what)
        return [None] * len(adding)

    def _places_here(
        self, adding: Sequence[tuple[str, int]], wanted: Mapping[str, int]
    ) -> list[str | None]:
        """As if those that are to leave had left."""
        if not adding:
            return []
        if self._plan.placement.device == "cuda":
            config = self._plan.config
            changes = {}
            for role in ROLES:
                part = getattr(config, role)
                engine = part.engine.model_copy(update={"num_engines": wanted[role]})
                changes[role] = part.model_copy(update={"engine": engine})
            require_gpus(config.model_copy(update=changes), self._num_gpus)
            return [None] * len(adding)
        staying = {f"{role}-{n}" for role in ROLES for n in range(wanted[role])}
        held = [cores for name, cores in self._cores.items() if cores and name in staying]
        settings = [self._engine(role).cpu_cores for role, _ in adding]
        return list(cores_for_more(settings, self._machine_cores, held))

    def _forget(self, name: str) -> None:
        self._cores.pop(name, None)
        if self._plan.cluster is not None:
            self._plan.cluster.leave_seat(name)

    def _slot(self, role: str, number: int, cores: str | None) -> ActorSlot:
        return engine_slot(self._plan, self._actor_group, role, number, cores)

    def _engine(self, role: str) -> EngineConfig:
        config = self._plan.config
        return config.questioner.engine if role == "questioner" else config.roleplayer.engine

    @property
    def _supervisor(self) -> Supervisor:
        if self._actor_group.supervisor is None:
            raise EngineError("the actors is not there yet")
        return self._actor_group.supervisor

    def _tell(self, text: str) -> None:
        _log.warning("%s", text)  # the run's log takes nothing below
        self._say(text)

    async def _aloud(self, work: Awaitable[_Result], text: str) -> _Result:
        """Awaits something, and says so now and then."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_SPEAK_SECONDS))[0]:
                self._say(text)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
