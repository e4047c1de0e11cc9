"""One GPU for all actors: who may ask for it, what each gets, what does not fit."""

from typing import Any

import pytest

from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.resources.cluster import Node, assign, needs, nodes_for
from stargate.resources.gpu_phases import check_phases, engine_share, gpu_share, phase_memory
from stargate.resources.placement import place, seat

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
    own = place(RunConfig.model_validate({}), [0, 1], num_gpus=2)
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


def test_every_phase_has_a_budget() -> None:
    settings = config()
    assert engine_share(settings) == pytest.approx(0.8)
    params = 2**30  # so that bytes per parameter are GiB
    # play: 0.8 x 24 + 2 x 0.75; score: 2 + 4 x 0.75 + 1; train: 16 + 4 x 0.75 + 1
    found = phase_memory(settings, 24.0, params)
    assert found == pytest.approx({"play": 20.7, "score": 6.0, "train": 20.0})
    check_phases(settings, 24.0, params)
    with pytest.raises(MachineError, match=r"the train phase needs at least 36\.0 GiB.*has 24\.0"):
        check_phases(settings, 24.0, 2 * params)
    adapters = config(trainer={"lora": {}})
    check_phases(adapters, 24.0, 2 * params)


def test_on_a_cluster_all_go_to_one_node() -> None:
    nodes = [Node("a", 1, 1), Node("b", 1, 16, cores=tuple(range(16)))]
    assigned = nodes_for(config(), nodes)
    assert set(assigned.values()) == {"b"}
    placement = seat(config(), assigned, nodes[1:])
    assert (placement.gpu_share, placement.overlap) == (0.25, False)
    # Two nodes that have it only together are not enough.
    with pytest.raises(MachineError, match=r"all actors go to one node with a GPU and \d CPUs"):
        nodes_for(config(), [Node("a", 1, 2), Node("b", 1, 2)])
