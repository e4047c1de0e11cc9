"""Changes how many engines a role has, while a run goes on.

    scale({"questioner": 3, "roleplayer": 1})
      fewer -> the last ones get no new requests, end those that they have, and are ended
      more  -> places are found before anything starts; then they are started beside the others,
               given the current weights, and work

Who joins and leaves is the supervisor's (supervisor.py); here it is where they go, and their end.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.spawn import ActorGroup, ActorPlan, actor_slot, end_actors
from stargate.errors import EngineError, MachineError
from stargate.monitoring.progress import logged
from stargate.monitoring.waiting import await_aloud
from stargate.resources.cluster import ENGINES
from stargate.resources.gpu_phases import is_colocated
from stargate.resources.placement import Seat, own_machine, require_gpus, seat_more
from stargate.resources.scale_request import shown


class Scaler:
    """Adds engines to a run and takes some away. One `scale` at a time."""

    def __init__(
        self,
        plan: ActorPlan,
        group: ActorGroup,
        cores: Sequence[int],
        num_gpus: int,
        say: Callable[[str], None],
    ) -> None:
        """`cores` and `num_gpus` are this machine's; on a cluster its nodes tell theirs."""
        self._plan, self._group = plan, group
        self._machine = own_machine(cores, num_gpus)
        self._say, self._tell = say, logged(say, __name__)

    @property
    def counts(self) -> dict[str, int]:
        """Engines of each role that get work."""
        return {role: len(self._group.places[role]) for role in ENGINES}

    async def scale(self, targets: Mapping[str, int]) -> str:
        """Returns what there is then. Raises MachineError or EngineError: those that came until
        then stay, and so do those that were to be added after some had left.
        """
        before = self.counts
        if is_colocated(self._plan.config):
            raise MachineError(
                "cluster.strategy is 'colocated': its engines share one GPU, none can be added"
            )
        if "roleplayer" in targets and "roleplayer" not in self._plan.config.engines:
            raise MachineError("the Roleplayer is an API (roleplayer.type=api): it has no engines")
        wanted = {**before, **targets}
        adding = [(role, n) for role in ENGINES for n in range(before[role], wanted[role])]
        leaving = [role for role in ENGINES for _ in range(wanted[role], before[role])]
        if adding and self._plan.cluster is None:  # before anything is taken away
            self._seats_here(adding, wanted)
        for role in leaving:
            await self._take_out(role)
        if adding:
            await self._add(adding, wanted)
        return f"now {shown(self.counts)}"

    async def _take_out(self, role: str) -> None:
        name = f"{role}-{self.counts[role] - 1}"
        leaving = self._group.leaving
        late = f"{name}: still ends what it has under way"
        retiring = self._group.supervisor.retire(role, leaving)
        await await_aloud({name: retiring}, lambda _: self._say(late))
        done = ""
        with contextlib.suppress(EngineError):  # it died while it was leaving
            stats = await remote(leaving[0].stats.remote())
            done = f", after {stats.num_requests} requests"
        await end_actors(leaving)  # only one leaves at a time
        leaving.clear()
        self._plan.seats.pop(name)
        self._tell(f"{name} has left{done}")

    async def _add(self, adding: Sequence[tuple[str, int]], wanted: Mapping[str, int]) -> None:
        settings = self._settings(adding)
        names = ", ".join(settings)
        try:
            if self._plan.cluster is None:
                for seat in self._seats_here(adding, wanted):
                    self._plan.seats[seat.actor] = seat
            else:
                late = f"{names}: still waiting for a node"
                finding = self._plan.cluster.seat_more(settings)
                await await_aloud({names: finding}, lambda _: self._say(late))
            self._tell(f"starting {names}; the others go on")
            slots = [actor_slot(self._plan, self._group.places, *one) for one in adding]
            late = f"{names}: not all there yet"
            await await_aloud({names: self._group.supervisor.add(slots)}, lambda _: self._say(late))
        except BaseException:
            there = {f"{role}-{n}" for role, count in self.counts.items() for n in range(count)}
            for name in settings.keys() - there:
                self._plan.seats.pop(name, None)
            raise

    def _seats_here(
        self, adding: Sequence[tuple[str, int]], wanted: Mapping[str, int]
    ) -> list[Seat]:
        """Seats on this machine, as if those that are to leave had left. Raises MachineError."""
        staying = {f"{role}-{n}" for role in ENGINES for n in range(wanted[role])}
        seats = self._plan.seats
        present = {n: s for n, s in seats.items() if n in staying or s.role not in ENGINES}
        settings = self._settings(adding)
        new = seat_more(settings, dict.fromkeys(settings, ""), [self._machine], present)
        require_gpus([*present.values(), *new], self._machine.num_gpus)
        return new

    def _settings(self, adding: Sequence[tuple[str, int]]) -> dict[str, str | None]:
        """`cpu_cores` of each engine that joins."""
        engines = self._plan.config.engines
        return {f"{role}-{number}": engines[role].cpu_cores for role, number in adding}
