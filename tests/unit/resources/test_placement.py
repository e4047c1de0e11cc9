"""Sharing a machine out, on literal cores."""

import pytest
from pydantic import ValidationError

from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.resources.placement import Placement, decide_overlap, listed_cores, place


def config(**changes: object) -> RunConfig:
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


def test_too_few_cores_names_the_key() -> None:
    with pytest.raises(MachineError, match="2 engines need a core each, this machine has 1: lower"):
        place(config(), cores=[0], num_gpus=0)


def test_gpus_overlap_and_are_counted() -> None:
    got = place(config(scorer={"num_gpus": 1}), cores=list(range(8)), num_gpus=3)
    assert got.overlap
    assert cores_of(got, "questioner") == [None]
    with pytest.raises(MachineError, match="needs 3 GPUs, this machine has 2"):
        place(config(scorer={"num_gpus": 1}), cores=[0, 1], num_gpus=2)


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(MachineError, match="no usable GPU: set device=cpu"):
        place(config(device="cuda"), cores=[0, 1], num_gpus=0)


def test_overlap_follows_the_config() -> None:
    assert place(config(schedule={"overlap": "always"}), [0, 1], 0).overlap
    assert not place(config(schedule={"overlap": "never"}), [0, 1], 2).overlap


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
