"""A run's side of a cluster, with agents that are no actors and nodes that are literals."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.actors.runtime import cluster as cluster_module
from stargate.actors.runtime import node_agent
from stargate.actors.runtime.cluster import Cluster, Site
from stargate.actors.runtime.discovery import Discovery
from stargate.actors.runtime.node_agent import NodeAgent, NodeReport
from stargate.config.run import RunConfig
from stargate.errors import EngineError, MachineError
from stargate.monitoring import waiting
from stargate.resources import models
from stargate.resources.cluster import Node, nodes_for
from stargate.resources.placement import seat
from tests.unit.actors.runtime.test_file_transfer import Handle


def node(name: str, address: str, num_cpus: float = 2) -> Node:
    return Node(name, 0, num_cpus, f"label-{name}", address, name, (0, 1, 2, 3))


A, B, C = node("a", "10.0.0.1"), node("b", "10.0.0.2"), node("c", "10.0.0.3")


def report(node: str) -> NodeReport:
    return NodeReport(node, (0, 1, 2, 3), "same", f"/{node}/base", f"/{node}/other")


class World:
    """A cluster of a and b, where the driver is on b; c may join."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.run_dir = tmp_path / "run"
        for name in ("logs", "models", "models/m1"):
            (self.run_dir / name).mkdir(parents=True)
        (self.run_dir / "models/m1/model.safetensors").write_bytes(b"weights")
        shm = tmp_path / "shm"
        shm.mkdir()
        monkeypatch.setattr(node_agent, "SHARED_MEMORY", shm)
        monkeypatch.setattr(node_agent.tempfile, "gettempdir", lambda: str(tmp_path))
        monkeypatch.setattr(cluster_module.ray, "kill", self._kill)
        monkeypatch.setattr(cluster_module.ray, "put", lambda value: value)
        # Ray's own takes real ids only.
        monkeypatch.setattr(cluster_module, "on_node", lambda node: SimpleNamespace(node_id=node))
        self.living = [A, B]
        monkeypatch.setattr(cluster_module, "living_nodes", lambda free=False: self.living)
        self.killed: list[Any] = []
        self.said: list[str] = []
        config = RunConfig.model_validate(
            {
                "device": "cpu",
                "cluster": {"strategy": "spread", **settings},
                "trainer": {"num_ranks": 2},
            }
        )
        nodes = (A, B)
        reports = {"a": report("a"), "b": report("b")}
        discovery = Discovery(
            config=config,
            address="x:1",
            driver_node="b",
            nodes=nodes,
            reports=reports,
            placement=seat(config, nodes_for(config, nodes), nodes),
        )
        self.cluster = Cluster(discovery, Path("/b/base"), self.run_dir / "logs", self.said.append)
        for one in nodes:
            self.open(one)

        async def move_in(node: Node, report: Any) -> None:
            self.open(node)

        def ask(nodes: list[Node], *_: Any) -> dict[str, NodeReport]:
            return {one.name: report(one.name) for one in nodes}

        monkeypatch.setattr(cluster_module, "ask_nodes", ask)
        monkeypatch.setattr(self.cluster, "_move_in", move_in)

    def open(self, node: Node) -> None:
        name = node.name
        self.cluster._agents[name] = Handle()
        self.cluster._nodes[name] = node
        folders = f"/{name}/base", f"/{name}/other"
        self.cluster._sites[name] = Site(*folders, self.run_dir / "logs")

    def where(self, actor: str) -> tuple[str, str | None]:
        seat = self.cluster.seats[actor]
        return seat.node, seat.cores

    def _kill(self, handle: Any) -> None:
        self.killed.append(handle)

    async def hire(self, names: list[str], actors: list[Any]) -> list[Any]:
        async def spawn() -> list[Any]:
            return actors

        return await self.cluster.hire(names, spawn)

    async def brought(self, folder: Path, actor: str) -> str:
        async with self.cluster.bring(str(folder), actor) as place:
            return place


class Actor:
    """A handle whose process comes up, or never does."""

    def __init__(self, comes: bool = True) -> None:
        async def ready() -> bool:
            await asyncio.sleep(0 if comes else 60)
            return True

        self.__ray_ready__ = type("Method", (), {"remote": staticmethod(ready)})


def test_m0_is_where_each_node_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    assert asyncio.run(world.brought(Path("/b/base"), "questioner-0")) == "/a/base"
    assert asyncio.run(world.brought(Path("/b/base"), "roleplayer-0")) == "/b/base"
    assert world.cluster.site(world.cluster.seats["questioner-0"].node).roleplayer_dir == "/a/other"


@pytest.mark.parametrize(
    ("roles", "base", "voice"),
    [
        ({"roleplayer"}, None, "/models/voice"),
        ({"scorer"}, "/models/base", None),
        ({"questioner", "roleplayer"}, "/models/base", "/models/voice"),
    ],
)
def test_a_node_fetches_the_models_of_its_own_actors(
    roles: set[str], base: str | None, voice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str, **_: bool) -> Path:
        return Path("/models") / name

    for module in (node_agent, models):
        monkeypatch.setattr(module, "resolve_model", resolve)
    config = RunConfig.model_validate({"model": "base", "roleplayer": {"model": "voice"}})
    found = node_agent.node_report(config, roles)
    assert (found.base_model_dir, found.roleplayer_dir) == (base, voice)


def test_an_engine_that_joins_a_node_finds_its_model_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node b had Roleplayers only; who is of a role that is there already asks for nothing."""
    world = World(tmp_path, monkeypatch)
    asked: list[set[str]] = []

    def ask(nodes: list[Node], roles: dict[str, set[str]], *_: Any) -> dict[str, NodeReport]:
        [name] = [node.name for node in nodes]
        asked.append(roles[name])
        return {name: report(name)}

    monkeypatch.setattr(cluster_module, "ask_nodes", ask)
    world.cluster.seats = {
        name: seat for name, seat in world.cluster.seats.items() if seat.role == "roleplayer"
    }
    world.cluster._sites["b"] = Site(None, "/b/other", world.run_dir / "logs")
    asyncio.run(world.cluster._make_ready({"roleplayer-1": "b"}))
    assert asked == []
    asyncio.run(world.cluster._make_ready({"questioner-1": "b"}))
    assert asked == [{"questioner", "roleplayer"}]
    assert world.cluster.site("b").model_dir("questioner") == "/b/base"


def test_a_node_that_sees_the_folder_reads_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    folder = world.run_dir / "models/m1"
    assert asyncio.run(world.brought(folder, "questioner-0")) == str(folder)
    assert world.cluster._file_transfer.num_sent == 0
    assert [path.name for path in folder.parent.iterdir()] == ["m1"]  # no trace of the question


@pytest.mark.parametrize("sees", [True, False])
def test_to_others_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: bool) -> None:
    world = World(tmp_path, monkeypatch, shared_storage="never" if sees else "auto")
    if not sees:
        monkeypatch.setattr(NodeAgent, "sees", lambda *_: False)
    folder = world.run_dir / "models/m1"

    async def story() -> None:
        async with world.cluster.bring(str(folder), "questioner-0") as place:
            assert place.startswith(str(tmp_path / "shm"))
            assert (Path(place) / "model.safetensors").read_bytes() == b"weights"
        # The driver's own node never needs a copy.
        assert await world.brought(folder, "roleplayer-0") == str(folder)

    asyncio.run(story())


def test_what_a_rank_saves_elsewhere_comes_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, shared_storage="never")
    target = world.run_dir / "models/m2"

    async def story() -> None:
        with pytest.raises(EngineError):
            async with world.cluster.collect(target, "trainer-0") as place:
                raise EngineError("the rank died")
        assert not target.exists()
        async with world.cluster.collect(target, "trainer-0") as place:
            assert not Path(place).is_relative_to(world.run_dir)
            Path(place).mkdir()
            (Path(place) / "model.safetensors").write_bytes(b"new")
        assert (target / "model.safetensors").read_bytes() == b"new"
        assert not Path(place).exists()
        async with world.cluster.collect(target, "trainer-1") as place:  # on the driver's node
            assert place == str(target)

    asyncio.run(story())


def test_ranks_on_several_nodes_meet_on_the_address_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    asked: list[str] = []
    monkeypatch.setattr(NodeAgent, "free_port", lambda _, address: asked.append(address) or 1234)

    async def story() -> None:
        ranks = [Actor(), Actor()]
        assert await world.hire(["trainer-0", "trainer-1"], ranks) == ranks
        assert await world.cluster.meet(["trainer-0", "trainer-1"]) == ("10.0.0.1", 1234)
        assert await world.cluster.meet(["trainer-0"]) == ("127.0.0.1", 1234)

    asyncio.run(story())
    assert asked == ["10.0.0.1", "127.0.0.1"]


def test_a_process_that_does_not_come_has_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_PROCESS_SECONDS", 0.2)
    monkeypatch.setattr(waiting, "SPEAK_SECONDS", 0.05)
    world = World(tmp_path, monkeypatch)
    actor = Actor(comes=False)
    late = "a process of questioner-0 on node label-a"
    with pytest.raises(MachineError, match=f"not there after 0 s: {late}"):
        asyncio.run(world.hire(["questioner-0"], [actor]))
    assert world.killed == [actor]
    assert world.said[0] == f"setup: still waiting for {late}"


def test_an_actor_whose_node_has_left_moves_to_one_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    world.living = [node("b", "10.0.0.2", num_cpus=1), C]  # the Roleplayer holds one of b
    new = [Actor()]
    assert asyncio.run(world.hire(["questioner-0"], new)) == new
    assert world.where("questioner-0") == ("c", "0,1")
    assert world.said == [
        "questioner-0: node label-a has left the cluster",
        "questioner-0 moves to node label-c",
    ]


def test_without_room_for_it_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_ROOM_SECONDS", 0.0)
    world = World(tmp_path, monkeypatch)
    full = node("b", "10.0.0.2", num_cpus=0.5)
    world.living = [full]
    with pytest.raises(MachineError, match="no other node has room for questioner-0: "):
        asyncio.run(world.hire(["questioner-0"], []))


def test_an_engine_that_joins_gets_a_node_with_free_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines hold all cores of a and b, so it goes to c; once it has left, c has room again."""
    world = World(tmp_path, monkeypatch)
    world.living = [A, B, C]
    asyncio.run(world.cluster.seat_more({"questioner-1": None, "roleplayer-1": None}))
    assert world.where("questioner-1") == ("c", "0")
    assert world.where("roleplayer-1") == ("c", "1")
    assert world.cluster.seats["questioner-1"].num_cpus == 1.0
    assert world.said == [
        "questioner-1 gets a place on node label-c",
        "roleplayer-1 gets a place on node label-c",
    ]
    with pytest.raises(MachineError, match=r"no node has room for questioner-2: .*; its engines"):
        asyncio.run(world.cluster.seat_more({"questioner-2": None}))
    del world.cluster.seats["questioner-1"]
    asyncio.run(world.cluster.seat_more({"questioner-1": None}))
    assert world.where("questioner-1") == ("c", "0")


def test_an_engine_that_joins_waits_for_its_node_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "SPEAK_SECONDS", 0.02)
    world = World(tmp_path, monkeypatch, wait_s=60)

    async def story() -> None:
        joining = asyncio.create_task(world.cluster.seat_more({"questioner-1": None}))
        while not world.said:
            await asyncio.sleep(0.001)
        assert not joining.done()
        world.living = [A, B, C]
        await joining

    asyncio.run(story())
    assert set(world.said[:-1]) == {"still waiting for a node with room for questioner-1"}
    assert world.said[-1] == "questioner-1 gets a place on node label-c"


def test_at_the_end_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, shared_storage="never")

    async def story() -> None:
        async with world.cluster.bring(str(world.run_dir / "models/m1"), "questioner-0"):
            assert list((tmp_path / "shm").iterdir())
            await world.cluster.close()

    agents = list(world.cluster._agents.values())
    asyncio.run(story())
    assert world.killed == agents
    assert list((tmp_path / "shm").iterdir()) == []
