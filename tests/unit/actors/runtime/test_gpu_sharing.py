"""What actors are told when they share one GPU, with fakes: the literal sequence of a run."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.actors.rpc.remote import ActorDied
from stargate.actors.runtime import spawn
from stargate.actors.runtime.actor_slots import ActorSlot, HeldWeights
from stargate.actors.runtime.file_transfer import SameFiles
from stargate.actors.runtime.gpu_sharing import SleepController
from stargate.actors.runtime.spawn import ActorPlan, _room
from stargate.actors.runtime.supervisor import Supervisor
from stargate.config.run import RunConfig
from stargate.launch.system import take_turns
from stargate.resources.gpu_phases import GpuPhase
from stargate.resources.placement import Seat, place
from stargate.run_context import Roles
from tests.fakes.actor_slots import settle


class Actor:
    """Any of the actors. Writes into the diary that all of them share."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self.diary = name, diary
        self.level = 0
        self.alive = True

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return SimpleNamespace(remote=partial(self._call, method))

    async def _call(self, method: str, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        if not self.alive:
            raise ActorDied(f"{self.name} is gone")
        if method == "ping":
            return None
        self.diary.append(" ".join([self.name, method, *map(str, arguments)]))
        if method == "sleep":
            self.level = arguments[0]
        elif method == "wake_up":
            if self.level == 2:
                return False
            self.level = 0
            return True
        elif method == "load_weights":
            self.level = 0
        return None


def places(diary: list[str]) -> dict[str, list[Any]]:
    return {
        "questioner": [Actor("questioner-0", diary), Actor("questioner-1", diary)],
        "roleplayer": [Actor("roleplayer-0", diary)],
        "scorer": [Actor("scorer-0", diary)],
        "trainer": [Actor("trainer-0", diary)],
        "dialogue-worker": [],
    }


async def start(actors: Any) -> None:
    for actor in actors.values():
        await actor.start.remote()


def roles_of(diary: list[str], group: dict[str, list[Any]]) -> Roles:
    def part(name: str) -> Any:
        async def call(*arguments: Any) -> str:
            awake = [a.name for actors in group.values() for a in actors if a.level == 0]
            diary.append(f"{name}: awake are {', '.join(awake)}")
            if name == "push":
                for engine in group["questioner"]:
                    await engine.load_weights.remote(*arguments)
            return name

        return call

    return Roles(
        generate=part("generate"),
        roleplay=part("roleplay"),
        score=part("score"),
        train=part("train"),
        push=part("push"),
    )


async def test_a_whole_iteration_on_one_gpu() -> None:
    diary: list[str] = []
    group = places(diary)
    turns = await SleepController(group, HeldWeights("base"), SameFiles()).start(start)
    diary.append("--- started")
    roles = take_turns(roles_of(diary, group), turns)
    await roles.generate("request")  # type: ignore[arg-type]
    await roles.score([])
    await roles.generate("response")  # type: ignore[arg-type]
    await roles.train([], 1)
    await roles.push("models/m1", 1)
    await roles.generate("request")  # type: ignore[arg-type]
    engines = "questioner-0, questioner-1, roleplayer-0"
    assert diary == [
        *("questioner-0 start", "questioner-1 start", "roleplayer-0 start"),
        *("questioner-0 sleep 1", "questioner-1 sleep 1", "roleplayer-0 sleep 1"),
        *("scorer-0 start", "scorer-0 sleep 1", "trainer-0 start"),
        "--- started",
        *("questioner-0 wake_up", "questioner-1 wake_up", "roleplayer-0 wake_up"),
        f"generate: awake are {engines}, trainer-0",
        *("questioner-0 sleep 1", "questioner-1 sleep 1", "roleplayer-0 sleep 1"),
        *("scorer-0 wake_up", "score: awake are scorer-0, trainer-0"),
        *("scorer-0 sleep 1", "questioner-0 wake_up", "questioner-1 wake_up"),
        *("roleplayer-0 wake_up", f"generate: awake are {engines}, trainer-0"),
        # Their weights are not kept: new ones come.
        *("questioner-0 sleep 2", "questioner-1 sleep 2", "roleplayer-0 sleep 1"),
        "train: awake are trainer-0",
        "push: awake are trainer-0",
        *("questioner-0 load_weights models/m1 1", "questioner-1 load_weights models/m1 1"),
        *("roleplayer-0 wake_up", f"generate: awake are {engines}, trainer-0"),
    ]


def test_an_engine_without_weights_gets_the_current_ones_and_the_dead_are_left_alone() -> None:
    diary: list[str] = []
    group = places(diary)
    group["questioner"][0].level = 2
    group["questioner"][1].alive = False
    brought: list[tuple[str, str]] = []

    class FileAccess(SameFiles):
        @asynccontextmanager
        async def bring(self, folder: str, actor: str) -> Any:
            brought.append((folder, actor))
            yield f"/there/{folder}"

    weights = HeldWeights("base")
    weights.current = ("models/m3", 3)
    sleep_controller = SleepController(group, weights, FileAccess())
    asyncio.run(sleep_controller.carry_out("questioner", 0))
    assert diary == ["questioner-0 wake_up", "questioner-0 load_weights /there/models/m3 3"]
    assert brought == [("models/m3", "questioner-0")]


async def test_a_dead_engine_comes_back_when_the_trainer_has_left_the_gpu(tmp_path: Path) -> None:
    diary: list[str] = []
    group = places(diary)
    slots: list[ActorSlot] = []

    async def hire() -> list[Any]:
        return [Actor("questioner-0'", diary)]

    turns = await SleepController(group, HeldWeights("base"), SameFiles()).start(start)
    slots.append(
        ActorSlot("questioner", group["questioner"], (0,), hire, lambda a: a.ping.remote())
    )
    supervisor = Supervisor(slots, HeldWeights("base"), 3, lambda actor: None, diary.append)
    supervisor.room = partial(_room, turns)
    training = asyncio.Event()

    async def train() -> None:
        await training.wait()
        diary.append("training ends")

    stage = asyncio.ensure_future(turns.during(GpuPhase.TRAIN, train)())
    await settle()
    group["questioner"][0].alive = False
    back = asyncio.ensure_future(supervisor.replace("questioner", 0, ActorDied("gone")))
    await settle()
    assert "questioner-0' start" not in diary
    training.set()
    await asyncio.wait_for(asyncio.gather(stage, back), 5)
    assert diary.index("training ends") < diary.index("questioner-0' start")


@pytest.mark.parametrize(
    ("strategy", "num_gpus", "device", "share"),
    [("colocated", 1, "cuda", 0.25), ("packed", 4, "cuda", 1.0), ("packed", 2, "cpu", 0.0)],
)
def test_who_has_a_part_of_a_gpu_computes_on_it(
    monkeypatch: pytest.MonkeyPatch, strategy: str, num_gpus: int, device: str, share: float
) -> None:
    """Colocated, scorer and trainer get a share; else a GPU each, or the CPU if a config says 0."""
    engine = {"engine": {"gpu_memory_utilization": 0.4}}
    config = RunConfig.model_validate(
        {"cluster": {"strategy": strategy}, "questioner": engine, "roleplayer": engine}
        | ({"scorer": {"num_gpus": 0}, "trainer": {"num_gpus_per_rank": 0}} if not share else {})
    )
    placement = place(config, [0, 1, 2, 3], num_gpus, gpu_gib=80.0)
    plan = ActorPlan(config, placement, Path("m0"), Path("m0"), Path("logs"))
    given: list[tuple[str, float]] = []

    def seated_class(_: type, seat: Seat, __: dict[str, str]) -> Any:
        return SimpleNamespace(remote=lambda spec: given.append((spec.device, seat.num_gpus)))

    monkeypatch.setattr(spawn, "seated_class", seated_class)
    spawn.spawn_engine(plan, "questioner", 0)
    assert given.pop() == ("cuda", share or 1.0)
    spawn._spawn_scorer(plan, 0)
    spawn._spawn_trainer(plan, 0, "127.0.0.1", 1)
    assert given == [(device, share)] * 2


def test_an_actors_class_has_what_its_seat_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses a strategy for a node that it does not know, and counts CPUs on clusters only."""
    given: list[dict[str, Any]] = []
    fake = SimpleNamespace(options=lambda **options: given.append(options))
    monkeypatch.setattr(spawn.ray, "remote", lambda cls: fake)
    for node, num_cpus in (("", 0.0), ("ab" * 28, 2.0)):
        spawn.seated_class(Actor, Seat("scorer-0", node, 0.5, num_cpus, None, 1), {"A": "b"})
    alone, on_node = given
    assert (alone["num_cpus"], alone["num_gpus"], alone.get("scheduling_strategy")) == (
        0,
        0.5,
        None,
    )
    assert alone["runtime_env"] == {"env_vars": {"A": "b"}}
    assert (on_node["num_cpus"], on_node["scheduling_strategy"].node_id) == (2.0, "ab" * 28)
    assert on_node["runtime_env"] == {"env_vars": {"A": "b", "RAY_worker_niceness": "0"}}
