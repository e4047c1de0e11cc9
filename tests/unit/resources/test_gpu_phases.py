"""One GPU for all actors: who sleeps when, in literal sequences; and whether all fit on it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stargate.config.run import RunConfig
from stargate.errors import EngineError, MachineError
from stargate.resources.cluster import Node, assign, needs, nodes_for
from stargate.resources.gpu_phases import (
    GpuPhase,
    GpuPhases,
    gpu_share,
    orders,
)
from stargate.resources.placement import place, seat

AWAKE = {"questioner": 0, "roleplayer": 0, "scorer": 1}


def test_orders_of_one_iteration_first_to_bed_then_up() -> None:
    asleep = {"questioner": 1, "roleplayer": 1, "scorer": 1}
    given = []
    for phase in (GpuPhase.PLAY, GpuPhase.SCORE, GpuPhase.PLAY, GpuPhase.TRAIN):
        now = orders(asleep, phase)
        asleep |= now
        given.append(list(now.items()))
    assert given == [
        [("questioner", 0), ("roleplayer", 0)],
        [("questioner", 1), ("roleplayer", 1), ("scorer", 0)],
        [("scorer", 1), ("questioner", 0), ("roleplayer", 0)],
        # New weights come after training: the Questioner's old ones are not kept.
        [("questioner", 2), ("roleplayer", 1)],
    ]
    assert orders(asleep, GpuPhase.PUSH) == {}
    assert orders({**asleep, "scorer": 0}, GpuPhase.PUSH) == {"scorer": 1}
    # One that sleeps lightly is not woken to sleep deeper; a role that is not there gets no order.
    assert orders({"questioner": 1, "scorer": 0}, GpuPhase.TRAIN) == {"scorer": 1}


class Diary:
    """Writes down what happens in which order."""

    def __init__(self, asleep: dict[str, int] | None = None) -> None:
        self.lines: list[str] = []
        self.turns = GpuPhases(asleep or AWAKE, self.carry_out)
        self.problem: Exception | None = None

    async def carry_out(self, role: str, level: int) -> None:
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem
        self.lines.append(f"{role} -> {level}")

    def call(self, phase: GpuPhase, steps: int = 3) -> Callable[[str], Awaitable[str]]:
        async def work(name: str) -> str:
            self.lines.append(f"{name} begins")
            for _ in range(steps):
                await asyncio.sleep(0)
            self.lines.append(f"{name} ends")
            return name

        return self.turns.during(phase, work)


async def test_an_iteration_in_turns() -> None:
    diary = Diary({"questioner": 1, "roleplayer": 1, "scorer": 1})
    play, score = diary.call(GpuPhase.PLAY), diary.call(GpuPhase.SCORE)
    await asyncio.gather(play("d0"), play("d1"))
    assert await score("s0") == "s0"
    await play("response")
    await diary.call(GpuPhase.TRAIN)("train")
    await diary.call(GpuPhase.PUSH)("push")
    diary.turns.woken("questioner")
    await play("d2")
    assert diary.lines == [
        *("questioner -> 0", "roleplayer -> 0"),
        *("d0 begins", "d1 begins", "d0 ends", "d1 ends"),
        *("questioner -> 1", "roleplayer -> 1", "scorer -> 0", "s0 begins", "s0 ends"),
        *("scorer -> 1", "questioner -> 0", "roleplayer -> 0", "response begins", "response ends"),
        *("questioner -> 2", "roleplayer -> 1", "train begins", "train ends"),
        *("push begins", "push ends"),
        *("roleplayer -> 0", "d2 begins", "d2 ends"),
    ]


async def test_a_shift_ends_only_when_nobody_works_and_who_comes_meanwhile_joins_it() -> None:
    diary = Diary()
    play, score = diary.call(GpuPhase.PLAY), diary.call(GpuPhase.SCORE, 1)
    first = asyncio.ensure_future(play("d0"))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(score("s0"))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(play("d1"))  # joins, though somebody waits
    await asyncio.gather(first, waiting, second)
    begins = [line for line in diary.lines if "begins" in line or "->" in line]
    assert begins == [
        *("d0 begins", "d1 begins"),
        *("questioner -> 1", "roleplayer -> 1", "scorer -> 0", "s0 begins"),
    ]
    assert diary.lines.index("d1 ends") < diary.lines.index("questioner -> 1")


async def test_a_waiter_that_gives_up_changes_nothing_and_blocks_nobody() -> None:
    diary = Diary()
    play, score = diary.call(GpuPhase.PLAY, 20), diary.call(GpuPhase.SCORE)
    playing = asyncio.ensure_future(play("d0"))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(score("s0"))
    await asyncio.sleep(0)
    waiting.cancel()
    await playing
    await play("d1")
    # And one that is cancelled during the very change.
    late = asyncio.ensure_future(score("s1"))
    for _ in range(2):
        await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait_for(play("d2"), 5)
    assert [line for line in diary.lines if line.endswith("begins")] == [
        *("d0 begins", "d1 begins", "d2 begins")
    ]


async def test_an_actor_that_is_started_anew_waits_for_room_and_never_locks_a_shift() -> None:
    diary = Diary()
    replacing = diary.turns.on(GpuPhase.PLAY, GpuPhase.PUSH)
    # An engine that died of the push is replaced within it.
    async with asyncio.timeout(5), diary.turns.on(GpuPhase.PUSH), replacing:
        diary.lines.append("replaced")
    training = asyncio.ensure_future(diary.call(GpuPhase.TRAIN, 10)("train"))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5), diary.turns.on(GpuPhase.PLAY, GpuPhase.PUSH):
        diary.lines.append("room")
    await training
    assert diary.lines[0] == "replaced"
    assert diary.lines.index("train ends") < diary.lines.index("room")


def test_what_keeps_a_shift_from_beginning_reaches_all_who_wait() -> None:
    diary = Diary()
    diary.problem = EngineError("questioner-0 does not sleep")

    async def run() -> list[object]:
        score = diary.call(GpuPhase.SCORE)
        failed = await asyncio.gather(score("s0"), score("s1"), return_exceptions=True)
        diary.problem = None
        assert await score("s2") == "s2"  # the next one tries again
        return list(failed)

    failed = asyncio.run(run())
    assert [str(error) for error in failed] == ["questioner-0 does not sleep"] * 2


async def test_work_that_fails_ends_its_shift_too() -> None:
    diary = Diary()

    async def fail() -> None:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        await diary.turns.during(GpuPhase.PLAY, fail)()
    await asyncio.wait_for(diary.call(GpuPhase.SCORE)("s0"), 5)


# --- whether all fit

SMALL = {"engine": {"gpu_memory_utilization": 0.4}}


def config(**changes: Any) -> RunConfig:
    tree = {"cluster": {"strategy": "colocated"}, "questioner": SMALL, "roleplayer": SMALL}
    return RunConfig.model_validate(tree | changes)


def test_all_actors_share_one_gpu_and_take_turns() -> None:
    got = place(config(), [0, 1, 2, 3], num_gpus=1, gpu_gib=80.0)
    assert (got.device, got.gpu_share, got.overlap) == ("cuda", 0.25, False)
    assert got.schedule == (
        "schedule: rollouts, scoring and responses take turns: all actors share one GPU, and "
        "engines sleep while others use it"
    )
    # Where everybody has GPUs of their own, nothing changes.
    own = place(RunConfig.model_validate({}), [0, 1], num_gpus=4)
    assert (own.gpu_share, own.overlap) == (0.0, True)


@pytest.mark.parametrize(
    ("num_engines", "share"), [(1, 0.25), (2, 0.2), (4, 0.1428), (7, 0.1)], ids=str
)
def test_shares_never_make_more_than_one(num_engines: int, share: float) -> None:
    engine = {"engine": {"num_engines": num_engines, "gpu_memory_utilization": 0.1}}
    settings = config(questioner=engine)
    assert gpu_share(settings) == share
    actors = needs(settings, device="cuda")
    assert {need.num_gpus for need in actors} == {share}
    assert sum(need.num_gpus for need in actors) <= 1.0
    assert len(assign(actors, [Node("a", 1, 64)], "colocated")) == num_engines + 3


def test_on_cpus_it_is_refused_in_one_line() -> None:
    with pytest.raises(MachineError) as refused:
        place(config(), [0, 1], num_gpus=0)
    assert str(refused.value) == (
        "cluster.strategy is 'colocated': its actors take turns on one GPU by vLLM's sleep mode, "
        "and this run is on CPUs: set cluster.strategy=packed"
    )
    with pytest.raises(MachineError, match="this run is on CPUs"):
        nodes_for(config(), [Node("a", 0, 16)])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"questioner": {"engine": {"tensor_parallel_size": 2}}}, "tensor_parallel_size must be 1"),
        ({"trainer": {"num_ranks": 2}}, "trainer.num_ranks must be 1, got 2"),
        ({"scorer": {"num_gpus": 0.5}}, "scorer.num_gpus must be 0, got 0.5"),
        ({"trainer": {"num_gpus_per_rank": 1}}, "num_gpus_per_rank must be 0, got 1"),
        ({"schedule": {"overlap": "always"}}, "schedule.overlap must be auto or never"),
        ({"device": "cpu"}, "needs a GPU, where vLLM can sleep; got device=cpu"),
    ],
)
def test_settings_that_contradict_it_are_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        config(**changes)


def test_engines_that_leave_no_room_are_refused() -> None:
    # Two others (scorer, trainer) hold 0.75 GiB each: 1.5 of 24 GiB, 93.75 %.
    greedy = {"engine": {"gpu_memory_utilization": 0.55}}
    with pytest.raises(MachineError, match=r"take 95% of the GPU's memory.*94% can be had: lower"):
        place(config(questioner=greedy), [0], num_gpus=1, gpu_gib=24.0)
    place(config(questioner=greedy), [0], num_gpus=1, gpu_gib=80.0)
    with pytest.raises(MachineError, match="170%"):
        place(config(questioner={}, roleplayer={}), [0], num_gpus=1)


def test_on_a_cluster_all_go_to_one_node() -> None:
    nodes = [Node("a", 1, 1), Node("b", 1, 16, cores=tuple(range(16)))]
    assigned = nodes_for(config(), nodes)
    assert set(assigned.values()) == {"b"}
    placement = seat(config(), assigned, nodes[1:])
    assert (placement.gpu_share, placement.overlap) == (0.25, False)
    # Two nodes that have it only together are not enough.
    with pytest.raises(MachineError, match=r"all actors go to one node with a GPU and \d CPUs"):
        nodes_for(config(), [Node("a", 1, 2), Node("b", 1, 2)])
