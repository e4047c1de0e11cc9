"""Seats of all actors: on one machine, on literal cores; on a cluster, on literal nodes."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stargate.config.files import load_config, validated
from stargate.config.run import RunConfig
from stargate.errors import ConfigError, MachineError
from stargate.resources.cluster import Node, nodes_for
from stargate.resources.gpu_phases import engine_share, gpu_share
from stargate.resources.placement import (
    Placement,
    decide_overlap,
    listed_cores,
    node_cores,
    place,
    seat,
    seat_again,
)
from stargate.resources.submission import JOB_VARIABLES, cluster_address


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(changes)


def cores_of(placement: Placement, role: str) -> list[str | None]:
    return [seat.cores for seat in placement.of(role)]


def threads_of(placement: Placement, role: str) -> list[int]:
    return [seat.threads for seat in placement.of(role)]


def test_two_cores_one_engine_each_and_stages_in_turn() -> None:
    got = place(config(), cores=[0, 1], num_gpus=0)
    assert got.device == "cpu"
    assert (cores_of(got, "questioner"), cores_of(got, "roleplayer")) == (["0"], ["1"])
    assert (threads_of(got, "scorer"), threads_of(got, "trainer")) == ([2], [2])
    assert [seat.num_cpus for seat in got.seats.values()] == [0.0] * 4  # Ray counts none
    assert not got.overlap


def test_all_cores_are_shared_and_own_settings_win() -> None:
    engines = {
        "questioner": {"engine": {"num_engines": 2}},
        "roleplayer": {"engine": {"cpu_cores": "6"}},
        "trainer": {"num_ranks": 2},
    }
    got = place(config(**engines), cores=[0, 1, 2, 3, 4, 5, 6], num_gpus=0)
    assert cores_of(got, "questioner") == ["0,1,2", "3,4"]
    assert cores_of(got, "roleplayer") == ["6"]
    assert threads_of(got, "trainer") == [3, 3]


def test_a_roleplayer_behind_an_api_takes_no_place() -> None:
    """Neither a core nor a GPU, nor memory of a GPU that all share."""
    api = {"type": "api", "oracle": {"type": "openai", "model": "m"}}
    placed = place(config(device="cpu", roleplayer=api), [0, 1], num_gpus=0)
    assert cores_of(placed, "questioner") == ["0,1"]
    assert "roleplayer-0" not in placed.seats
    assert place(config(roleplayer=api), [0], num_gpus=3).of("questioner")[0].num_gpus == 1
    with pytest.raises(MachineError, match="needs 4 GPUs"):
        place(config(), [0], num_gpus=1)
    shared = config(
        roleplayer=api,
        cluster={"strategy": "colocated"},
        questioner={"engine": {"gpu_memory_utilization": 0.8}},
    )
    assert engine_share(shared) == 0.8
    assert gpu_share(shared) == 0.3333


def test_too_few_cores_names_the_key() -> None:
    with pytest.raises(MachineError, match="2 engines need a core each, this machine has 1: lower"):
        place(config(), cores=[0], num_gpus=0)


@pytest.mark.parametrize("name", ["cpu_demo", "cpu_learn"])
def test_the_cpu_presets_are_on_cpus_wherever_they_run(name: str) -> None:
    got = place(load_config(name), cores=[0, 1, 2, 3], num_gpus=8, gpu_gib=80.0)
    assert got.device == "cpu"
    assert {seat.device for seat in got.seats.values()} == {"cpu"}


def test_gpus_overlap_and_are_counted() -> None:
    got = place(config(), cores=list(range(8)), num_gpus=4)
    assert got.overlap
    assert cores_of(got, "questioner") == [None]
    with pytest.raises(MachineError, match="needs 4 GPUs, this machine has 3"):
        place(config(), cores=[0, 1], num_gpus=3)


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(MachineError, match="no usable GPU: set device=cpu"):
        place(config(device="cuda"), cores=[0, 1], num_gpus=0)


def test_overlap_follows_the_config() -> None:
    assert place(config(schedule={"overlap": "always"}), [0, 1], 0).overlap
    assert not place(config(schedule={"overlap": "never"}), [0, 1], 4).overlap


def test_stages_that_would_share_cores_take_turns_and_the_run_says_so() -> None:
    one_each = place(config(scorer={"num_scorers": 2}), cores=[0, 1], num_gpus=0)
    assert (threads_of(one_each, "scorer"), threads_of(one_each, "trainer")) == ([1, 1], [2])
    assert not one_each.overlap
    assert one_each.schedule == (
        "schedule: rollouts, scoring and responses take turns: 4 threads would share 2 cores"
    )
    two_each = place(config(scorer={"num_scorers": 2}), cores=[0, 1, 2, 3], num_gpus=0)
    assert two_each.schedule.endswith("take turns: 8 threads would share 4 cores")


def test_auto_overlaps_where_all_teams_fit_side_by_side() -> None:
    changes = {
        "questioner": {"engine": {"cpu_cores": "0-2"}},
        "roleplayer": {"engine": {"cpu_cores": "3,4"}},
        "scorer": {"num_threads": 3},
    }
    assert place(config(**changes), cores=list(range(8)), num_gpus=0).overlap
    assert not place(config(**changes), cores=list(range(7)), num_gpus=0).overlap


@pytest.mark.parametrize(
    ("threads", "cores", "overlap"),
    [
        ((1, 1, 1, 1), 2, False),
        ((1, 1, 1, 1), 4, True),
        ((1, 1, 2), 2, False),
        ((1, 1, 2), 4, True),
        ((2, 2, 1), 4, False),
        ((2, 2, 1), 5, True),
    ],
)
def test_overlap_is_decided_by_threads_and_cores(
    threads: tuple[int, ...], cores: int, overlap: bool
) -> None:
    assert decide_overlap(threads, cores)[0] is overlap


@pytest.mark.parametrize(
    ("cores", "listed"),
    [("3", [3]), ("0-2,5", [0, 1, 2, 5]), ("0,2-4", [0, 2, 3, 4]), ("0-1|2-3", [0, 1, 2, 3])],
)
def test_core_lists(cores: str, listed: list[int]) -> None:
    assert listed_cores(cores) == listed


@pytest.mark.parametrize("cores", ["", "auto", "1-", "0;1", "0,"])
def test_a_core_list_that_is_none_is_refused(cores: str) -> None:
    with pytest.raises(ValidationError):
        config(questioner={"engine": {"cpu_cores": cores}})


# --- a cluster


def node(name: str, num_cpus: float, num_gpus: int = 0, machine: str | None = None) -> Node:
    """A node of four cores; nodes of one machine share them."""
    return Node(name, num_gpus, num_cpus, name, "10.0.0.1", machine or name, (0, 1, 2, 3))


def seated(settings: RunConfig, *nodes: Node) -> Placement:
    return seat(settings, nodes_for(settings, nodes), nodes)


def test_packed_takes_one_node_and_spread_takes_both() -> None:
    nodes = [node("a", 4), node("b", 4)]
    packed = seated(config(scorer={"num_scorers": 2}), *nodes)
    assert packed.by_node() == {
        "a": ["questioner-0", "roleplayer-0", "scorer-0", "scorer-1", "trainer-0"]
    }
    spread = seated(
        config(
            cluster={"strategy": "spread"},
            scorer={"num_scorers": 2},
            trainer={"num_ranks": 2},
        ),
        *nodes,
    )
    assert spread.by_node() == {
        "a": ["questioner-0", "scorer-0", "trainer-0"],
        "b": ["roleplayer-0", "scorer-1", "trainer-1"],
    }


@pytest.mark.parametrize("order", [1, -1])
def test_spread_ranks_do_not_depend_on_the_order_of_nodes(order: int) -> None:
    """A second rank has one core on either node: the node without a rank takes it."""
    nodes = [node("a", 2), node("b", 1)][::order]
    got = seated(config(cluster={"strategy": "spread"}, trainer={"num_ranks": 2}), *nodes)
    assert [s.node for s in got.of("trainer")] == ["a", "b"]


def test_each_node_shares_out_its_own_cores() -> None:
    got = seated(config(cluster={"strategy": "spread"}), node("a", 4), node("b", 4))
    by_name = got.seats
    assert (by_name["questioner-0"].cores, by_name["roleplayer-0"].cores) == ("0,1,2,3", "0,1,2,3")
    assert (by_name["questioner-0"].num_cpus, by_name["scorer-0"].num_cpus) == (1.0, 0.0)
    # The scorer has all cores of its node while the engine there waits.
    assert (by_name["scorer-0"].node, by_name["scorer-0"].threads) == ("a", 4)
    assert not got.overlap
    assert [s.cores for s in got.of("questioner")] == ["0,1,2,3"]


def test_nodes_on_one_machine_get_cores_of_their_own() -> None:
    nodes = [node("a", 1, machine="m"), node("b", 2, machine="m"), node("c", 1, machine="n")]
    assert node_cores(nodes) == {"a": (0,), "b": (1, 2), "c": (0,)}
    # More CPUs than the machine has: its cores are shared then.
    twice = [node("a", 3, machine="m"), node("b", 3, machine="m")]
    assert node_cores(twice) == {"a": (0, 1, 2), "b": (0, 1, 3)}


def test_stages_overlap_by_the_rule_of_one_machine() -> None:
    nodes = [node("a", 1, machine="m"), node("b", 1, machine="m")]
    got = seated(config(cluster={"strategy": "spread"}), *nodes)
    assert {s.actor: s.cores for s in got.seats.values() if s.cores} == {
        "questioner-0": "0",
        "roleplayer-0": "1",
    }
    assert not got.overlap  # a scorer shares a core with an engine
    assert "would share" in got.overlap_reason


def test_the_paper_config_over_two_nodes_of_four_gpus() -> None:
    head = node("head", 0)
    got = seated(load_config("paper"), head, node("a", 16, 4), node("b", 16, 4))
    assert got.device == "cuda"
    assert got.overlap
    assert sum(s.num_gpus for s in got.seats.values()) == 8
    assert "head" not in got.by_node()
    assert sorted(len(actors) for actors in got.by_node().values()) == [2, 4]
    assert all(s.cores is None for s in got.seats.values())


def test_a_cluster_that_is_too_small_is_one_line() -> None:
    many = config(questioner={"engine": {"num_engines": 6}}, device="cpu")
    with pytest.raises(MachineError) as small:
        nodes_for(many, [node("a", 2), node("b", 2)])
    assert str(small.value) == (
        "needs 7 CPUs, the cluster has 4: lower questioner.engine.num_engines"
    )
    with pytest.raises(MachineError, match="needs 2 CPUs, the cluster has 1: no count can be low"):
        nodes_for(config(device="cpu"), [node("a", 1)])
    with pytest.raises(MachineError, match="the cluster has no nodes"):
        nodes_for(config(), [node("head", 0)])


def test_an_engine_moves_to_cores_that_nobody_has() -> None:
    settings = config(cluster={"strategy": "spread"})
    a, b = node("a", 4), node("b", 4)
    seats = seated(settings, a, b).seats
    lost = [seats["roleplayer-0"]]
    assert lost[0].node == "b"
    others = [s for s in seats.values() if s.actor != "roleplayer-0"]
    [moved] = seat_again(lost, {"roleplayer-0": "a"}, [a], others)
    # The Questioner has all of a's cores: they are shared then.
    assert (moved.node, moved.cores) == ("a", "0,1,2,3")
    [moved] = seat_again(lost, {"roleplayer-0": "c"}, [a, node("c", 2)], others)
    assert (moved.node, moved.cores) == ("c", "0,1")


def test_a_run_attaches_where_it_should() -> None:
    job = {JOB_VARIABLES[0]: "{}"}
    assert cluster_address(config(), {}) is None
    assert cluster_address(config(), {"RAY_ADDRESS": "10.0.0.1:6379"}) is None
    assert cluster_address(config(), job) == "auto"
    assert cluster_address(config(cluster={"address": "local"}), job) is None
    assert cluster_address(config(cluster={"address": "node-1.x:6379"}), {}) == "node-1.x:6379"


@pytest.mark.parametrize("address", ["ray://a:1", "a", "a:b", "http://a:8265", "a:1 --x"])
def test_an_address_that_can_not_be_attached_to_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster.address"):
        validated(RunConfig, Path("x.yaml"), {"cluster": {"address": address}}, [])
