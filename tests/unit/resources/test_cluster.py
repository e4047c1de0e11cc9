"""Placing actors on a cluster, on literal nodes; and against every possible placement."""

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stargate.config.files import load_config
from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.resources.cluster import Need, Node, Strategy, assign, cluster_device, needs


def node(name: str, num_gpus: int, num_cpus: float = 64) -> Node:
    return Node(name, num_gpus, num_cpus)


def config(
    questioners: int = 1,
    roleplayers: int = 1,
    *,
    size: int = 1,
    other_size: int = 1,
    scorers: int = 1,
    scorer_gpus: float = 1,
    ranks: int = 1,
    rank_gpus: float = 1,
    **changes: Any,
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "questioner": {"engine": {"num_engines": questioners, "tensor_parallel_size": size}},
            "roleplayer": {
                "engine": {"num_engines": roleplayers, "tensor_parallel_size": other_size}
            },
            "scorer": {"num_scorers": scorers, "num_gpus": scorer_gpus},
            "trainer": {
                "num_ranks": ranks,
                "num_gpus_per_rank": rank_gpus,
                "batch_size": ranks,
                "micro_batch_size": 1,
            },
            **changes,
        }
    )


def needed(settings: RunConfig, nodes: list[Node], *, training: bool = True) -> list[Need]:
    return needs(settings, device=cluster_device(settings, nodes), training=training)


def where(settings: RunConfig, nodes: list[Node], strategy: Strategy = "packed") -> dict[str, str]:
    return assign(needed(settings, nodes), nodes, strategy)


def test_the_paper_config_fills_one_node_of_eight() -> None:
    paper, nodes = load_config("paper"), [node("a", 8)]
    assert [(need.name, need.num_gpus) for need in needed(paper, nodes)] == [
        ("questioner-0", 1.0),
        ("roleplayer-0", 2.0),
        ("roleplayer-1", 2.0),
        ("scorer-0", 1.0),
        ("trainer-0", 1.0),
        ("trainer-1", 1.0),
    ]
    assert set(where(paper, nodes).values()) == {"a"}


def test_packed_leaves_a_node_free_and_spread_uses_all() -> None:
    nodes = [node("a", 4), node("b", 4), node("c", 4)]
    assert set(where(config(2), nodes, "packed").values()) == {"a", "b"}
    assert Counter(where(config(2, 2), nodes, "spread").values()) == {"a": 2, "b": 2, "c": 2}


def test_too_few_gpus_names_the_count_to_lower() -> None:
    with pytest.raises(MachineError) as small:
        where(config(6), [node("a", 4), node("b", 4)])
    assert str(small.value) == (
        "needs 9 GPUs, the cluster has 8: lower questioner.engine.num_engines"
    )
    with pytest.raises(MachineError, match=r"lower roleplayer.engine.tensor_parallel_size"):
        where(config(other_size=4), [node("a", 4), node("b", 2)])


def test_an_actor_that_no_node_can_hold() -> None:
    with pytest.raises(MachineError) as large:
        where(config(size=8), [node("a", 4), node("b", 4), node("c", 4)])
    assert str(large.value) == (
        "questioner.engine.tensor_parallel_size=8, the largest node has 4 GPUs"
    )


def test_enough_in_sum_but_not_on_the_right_nodes() -> None:
    # 3 + 3 of 4 + 2 + 4: the singles go beside them.
    two_large = config(2, size=3)
    assert len(where(two_large, [node("a", 4), node("b", 2), node("c", 4)])) == 5
    with pytest.raises(MachineError) as scattered:
        where(two_large, [node("a", 5, 8), node("b", 2, 8), node("c", 2, 8)])
    assert str(scattered.value) == (
        "the cluster has enough in sum but not on the right nodes: questioner-0 and the others "
        "can't share 3 nodes (1 x 5 GPUs, 8 CPUs; 2 x 2 GPUs, 8 CPUs); lower "
        "questioner.engine.tensor_parallel_size or questioner.engine.num_engines"
    )


def test_cores_count_too() -> None:
    with pytest.raises(MachineError, match=r"needs 5 CPUs, the cluster has 4: lower questioner"):
        where(config(2), [node("a", 8, num_cpus=4)])
    threads = config(schedule={"overlap": "always"}, scorer={"num_threads": 5}, device="cpu")
    with pytest.raises(MachineError, match=r"scorer-0 needs 0 GPUs and 5 CPUs on one node"):
        where(threads, [node("a", 4, 4), node("b", 4, 4)])
    with pytest.raises(MachineError, match=r"needs 8 CPUs, the cluster has 5: lower scorer.num_gp"):
        where(threads, [node("a", 4, 5)])


def test_shares_of_a_gpu_lie_on_one_gpu() -> None:
    shared = config(scorers=2, scorer_gpus=0.5, rank_gpus=1)
    assert len(where(shared, [node("a", 4)])) == 5  # 1 + 1 + (0.5 + 0.5) + 1
    # 3 x 0.6 is 1.8 of 2 GPUs in sum, but no GPU holds two of them.
    with pytest.raises(MachineError, match="enough in sum but not on the right nodes"):
        where(config(scorers=3, scorer_gpus=0.6, rank_gpus=0), [node("a", 4)])
    # Ten tenths are one GPU: no float error makes it more.
    where(config(scorers=10, scorer_gpus=0.1, rank_gpus=0), [node("a", 3)])


def test_a_preference_is_given_up_rather_than_the_run() -> None:
    """The emptiest node for the 4 would leave no node for a 3."""
    tight = config(1, 2, size=4, other_size=3, scorer_gpus=0, rank_gpus=0)
    got = where(tight, [node("a", 6), node("b", 4)], "spread")
    assert (got["questioner-0"], got["roleplayer-0"], got["roleplayer-1"]) == ("b", "a", "a")


def test_without_gpus_only_engines_count_cores() -> None:
    plain = config(2, scorers=1, ranks=2)
    nodes = [node("a", 0, num_cpus=2), node("b", 0, num_cpus=1)]
    taken = [(need.num_gpus, need.num_cpus) for need in needed(plain, nodes)]
    assert taken == [(0.0, 1.0)] * 3 + [(0.0, 0.0)] * 3
    assert len(where(plain, nodes)) == 6
    with pytest.raises(MachineError, match="needs 3 CPUs, the cluster has 2"):
        where(plain, [node("a", 0, num_cpus=2)])
    overlapping = config(schedule={"overlap": "always"}, trainer={"num_threads": 4})
    assert [need.num_cpus for need in needs(overlapping, device="cpu")] == [1.0, 1.0, 1.0, 4.0]


def test_device_and_empty_clusters() -> None:
    with pytest.raises(MachineError, match="the cluster has no nodes"):
        where(config(), [])
    with pytest.raises(MachineError, match="the cluster has no GPU: set device=cpu"):
        where(config(device="cuda"), [node("a", 0)])
    assert not any(need.num_gpus for need in needed(config(device="cpu"), [node("a", 8)]))


def test_without_training_no_rank_is_placed() -> None:
    nodes = [node("a", 3)]
    found = assign(needed(config(ranks=4), nodes, training=False), nodes)
    assert list(found) == ["questioner-0", "roleplayer-0", "scorer-0"]


@settings(max_examples=150)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
    scorer_gpus=st.sampled_from([0.0, 0.5, 1.0]),
    gpus=st.lists(st.integers(0, 6), min_size=1, max_size=3).filter(any),
    cpus=st.integers(1, 6),
    strategy=st.sampled_from(["packed", "spread"]),
)
def test_a_placement_is_found_exactly_when_there_is_one(
    sizes: tuple[int, int, int, int],
    scorer_gpus: float,
    gpus: list[int],
    cpus: int,
    strategy: Strategy,
) -> None:
    questioners, roleplayers, size, other_size = sizes
    plan = config(
        questioners, roleplayers, size=size, other_size=other_size, scorer_gpus=scorer_gpus
    )
    nodes = [node(str(index), count, num_cpus=cpus) for index, count in enumerate(gpus)]
    actors = needs(plan, device="cuda")
    # At most one actor has a share of a GPU, so it needs a GPU of its own like a whole one.
    gpus_of = [1 if 0 < need.num_gpus < 1 else int(need.num_gpus) for need in actors]
    possible = False
    for choice in itertools.product(range(len(nodes)), repeat=len(actors)):
        taken, busy = [0] * len(nodes), [0.0] * len(nodes)
        for index, need, count in zip(choice, actors, gpus_of, strict=True):
            taken[index] += count
            busy[index] += need.num_cpus
        if all(a <= b.num_gpus for a, b in zip(taken, nodes, strict=True)) and max(busy) <= cpus:
            possible = True
            break
    try:
        found = assign(actors, nodes, strategy)
    except MachineError as error:
        assert not possible, (str(error), gpus, actors)
        assert "\n" not in str(error)
        return
    assert possible
    assert list(found) == [need.name for need in actors]
    for place in nodes:
        held = [need for need in actors if found[need.name] == place.name]
        assert sum(need.num_gpus for need in held) <= place.num_gpus
        assert sum(need.num_cpus for need in held) <= place.num_cpus
