"""Engines that join and leave: which places they get, and what becomes of those."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.actors.runtime import scaler as scaler_module
from stargate.actors.runtime import spawn
from stargate.actors.runtime.actor_slots import ActorSlot, HeldWeights
from stargate.actors.runtime.scaler import Scaler
from stargate.actors.runtime.spawn import ActorGroup, ActorPlan
from stargate.config.run import RunConfig
from stargate.errors import EngineError, MachineError
from stargate.monitoring import waiting
from stargate.resources.cluster import ENGINES, Node
from stargate.resources.placement import Seat, cores_for_more, full_nodes, place, seat_more
from tests.fakes.actor_slots import FakeActor, ping, settle

# --- places


def test_engines_that_join_get_cores_that_nobody_holds() -> None:
    cores = list(range(6))
    assert cores_for_more([None, None], cores, {0, 1, 2}) == ["3,4", "5"]
    assert cores_for_more([None], cores, {0, 1, 2, 3}) == ["4,5"]
    assert cores_for_more(["0", None, "0"], cores, {1, 2, 3, 4}) == ["0", "5", "0"]
    with pytest.raises(MachineError, match=r"2 more engines need a core each .* has 1 of 6 left"):
        cores_for_more([None, None], cores, {0, 1, 2, 3, 4})


def node(name: str) -> Node:
    return Node(name, 0, 4, name, "10.0.0.1", name, (0, 1, 2, 3))


def test_seats_of_engines_that_join_a_cluster() -> None:
    first = Seat("questioner-0", "a", 0.0, 1.0, "0,1,2,3", 4)
    nodes, present = [node("a"), node("b")], {"questioner-0": first}
    assert full_nodes(nodes, [first]) == {"a"}
    joining = ("questioner-1", "questioner-2")
    on_b = dict.fromkeys(joining, "b")
    assert seat_more(dict.fromkeys(joining), on_b, nodes, present) == [
        Seat("questioner-1", "b", 0.0, 1.0, "0,1", 2),
        Seat("questioner-2", "b", 0.0, 1.0, "2,3", 2),
    ]
    own = seat_more(dict.fromkeys(joining, "0"), on_b, nodes, present)
    assert [seat.cores for seat in own] == ["0", "0"]
    with pytest.raises(MachineError, match="0 of 4 left"):
        seat_more({"questioner-1": None}, {"questioner-1": "a"}, nodes, present)
    on_gpu = {"questioner-0": Seat("questioner-0", "a", 1.0, 1.0, None, 4)}
    assert seat_more({"questioner-1": None}, on_b, nodes, on_gpu)[0].cores is None


# --- the scaler


class Engine(FakeActor):
    async def do_stats(self) -> Any:
        return SimpleNamespace(num_requests=7)


async def nobody() -> list[Any]:
    return []


class World:
    """Fake actors on a machine with literal cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_cores: int, **changes: Any) -> None:
        config = RunConfig.model_validate(changes)
        num_gpus = num_cores if config.device == "cuda" else 0
        cores = list(range(num_cores))
        placement = place(config, cores, num_gpus)
        self.plan = ActorPlan(config, placement, Path("m0"), Path("m0"), Path("logs"))
        places = {role: [Engine(seat.actor) for seat in placement.of(role)] for role in ENGINES}
        self.said: list[str] = []
        self.killed: list[str] = []
        self.hired: dict[str, str | None] = {}  # the cores of each
        monkeypatch.setattr(spawn.ray, "kill", lambda actor: self.killed.append(actor.name))
        monkeypatch.setattr(scaler_module, "actor_slot", self.slot)
        slots = [
            ActorSlot(role, engines, (n,), nobody, ping)
            for role in ("questioner", "roleplayer")
            for engines in [places[role]]
            for n in range(len(engines))
        ]
        self.supervisor = spawn.Supervisor(
            slots,
            HeldWeights("m0"),
            3,
            lambda actor: self.killed.append(actor.name),
            self.said.append,
        )
        self.group = ActorGroup(places, self.supervisor)
        self.scaler = Scaler(self.plan, self.group, cores, num_gpus, self.said.append)
        self.prepare: Callable[[FakeActor], None] = lambda actor: None

    def slot(self, plan: ActorPlan, places: spawn.Places, role: str, number: int) -> ActorSlot:
        async def hire() -> list[Any]:
            actor = Engine(f"{role}-{number}")
            self.prepare(actor)
            self.hired[actor.name] = plan.seats[actor.name].cores
            return [actor]

        return ActorSlot(role, places[role], (number,), hire, ping)

    def scale(self, **targets: int) -> str:
        return asyncio.run(self.scaler.scale(targets))

    @property
    def names(self) -> list[str]:
        return [actor.name for role in ENGINES for actor in self.group.places[role]]


SHARED = {
    "questioner": {"engine": {"cpu_cores": "0"}},
    "roleplayer": {"engine": {"cpu_cores": "1"}},
}


def test_up_and_down_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 2, **SHARED)
    world.supervisor.weights.current = ("models/m1", 1)
    assert world.scale(questioner=3) == "now questioner=3 roleplayer=1"
    assert world.names == ["questioner-0", "questioner-1", "questioner-2", "roleplayer-0"]
    assert world.hired == {"questioner-1": "0", "questioner-2": "0"}
    assert world.group.places["questioner"][2].calls == [
        ("start",),
        ("load_weights", "models/m1", 1),
    ]
    assert world.said[0] == "starting questioner-1, questioner-2; the others go on"
    last = world.group.places["questioner"][2]
    assert world.scale(questioner=1, roleplayer=1) == "now questioner=1 roleplayer=1"
    assert world.names == ["questioner-0", "roleplayer-0"]
    assert last.methods[-1] == "shutdown"  # in order, then its process
    assert world.killed == ["questioner-2", "questioner-1"]
    assert world.group.leaving == []
    assert world.said[-3:] == [
        "questioner-2 has left, after 7 requests",
        "questioner-1 gets no new requests and ends those that it has",
        "questioner-1 has left, after 7 requests",
    ]
    assert world.scale(questioner=1) == "now questioner=1 roleplayer=1"
    assert (world.supervisor.counters.joined, world.supervisor.counters.left) == (
        {"questioner": 2},
        {"questioner": 2},
    )


def test_cores_of_those_that_leave_are_for_those_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 4, questioner={"engine": {"num_engines": 3}})
    with pytest.raises(MachineError, match=r"1 more engines need a core each .* has 0 of 4 left"):
        world.scale(roleplayer=2)
    assert (world.hired, world.killed, world.said) == ({}, [], [])
    with pytest.raises(MachineError, match=r"3 more engines need a core each .* has 2 of 4 left"):
        world.scale(questioner=1, roleplayer=4)
    assert world.killed == []  # refused before anybody left
    assert world.scale(questioner=1, roleplayer=3) == "now questioner=1 roleplayer=3"
    assert world.hired == {"roleplayer-1": "1", "roleplayer-2": "2"}
    assert world.killed == ["questioner-2", "questioner-1"]


def test_gpus_are_counted_with_those_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 4, device="cuda", scorer={"num_gpus": 0})
    assert world.scale(questioner=2) == "now questioner=2 roleplayer=1"
    assert world.hired == {"questioner-1": None}
    with pytest.raises(MachineError, match="needs 5 GPUs, this machine has 4"):
        world.scale(questioner=3)


def test_an_api_has_no_engines_to_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = {"type": "openai", "model": "m"}
    world = World(monkeypatch, 2, roleplayer={"type": "api", "oracle": oracle})
    with pytest.raises(MachineError, match="the Roleplayer is an API"):
        world.scale(roleplayer=1)
    assert world.scaler.counts == {"questioner": 1, "roleplayer": 0}


def test_one_that_can_not_start_leaves_its_place_free(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 4, questioner={"engine": {"num_engines": 3}})
    world.prepare = lambda actor: setattr(actor, "dies_in", "start")
    with pytest.raises(EngineError, match="roleplayer-1 is gone"):
        world.scale(questioner=2, roleplayer=2)
    assert world.names == ["questioner-0", "questioner-1", "roleplayer-0"]
    world.prepare = lambda actor: None
    assert world.scale(roleplayer=2) == "now questioner=2 roleplayer=2"
    assert world.hired == {"roleplayer-1": "2"}
    world.supervisor.failure.check()


async def test_waiting_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SPEAK_SECONDS", 0.01)
    world = World(monkeypatch, 2, **SHARED)
    hold = asyncio.Event()
    world.prepare = lambda actor: setattr(actor, "hold", hold)
    scaling = asyncio.create_task(world.scaler.scale({"questioner": 2}))
    while "questioner-1: not all there yet" not in world.said:
        await asyncio.sleep(0.001)
    hold.set()
    await scaling


async def test_a_run_that_ends_ends_one_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 2, **SHARED)
    world.prepare = lambda actor: setattr(actor, "hold", asyncio.Event())
    scaling = asyncio.create_task(world.scaler.scale({"questioner": 2}))
    await settle()
    scaling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scaling
    assert set(world.killed) == {"questioner-1"}
    assert world.names == ["questioner-0", "roleplayer-0"]


class FakeCluster:
    """Has room for `room` engines more."""

    def __init__(self, seats: dict[str, Seat], room: int) -> None:
        self.seats = seats
        self.room = room

    async def seat_more(self, wanted: Mapping[str, str | None]) -> None:
        if len(wanted) > self.room:
            raise MachineError("no node has room for questioner-1: needs 2 CPUs")
        self.seats.update({name: Seat(name, "b", 0.0, 1.0, None, 1) for name in wanted})


def test_on_a_cluster_places_are_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 2)
    seats = world.plan.seats
    before = set(seats)
    world.plan.cluster = FakeCluster(seats, room=1)  # type: ignore[assignment]  # what it needs
    with pytest.raises(MachineError, match="no node has room"):
        world.scale(questioner=3)
    assert world.scale(questioner=2) == "now questioner=2 roleplayer=1"
    assert (seats.keys() - before, world.hired) == ({"questioner-1"}, {"questioner-1": None})
    world.scale(questioner=1)
    assert seats.keys() == before
    world.prepare = lambda actor: setattr(actor, "dies_in", "start")
    with pytest.raises(EngineError):
        world.scale(roleplayer=2)
    assert seats.keys() == before
