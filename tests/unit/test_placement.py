"""Sharing a machine out, on literal cores."""

import pytest

from stargate.config import RunConfig
from stargate.errors import MachineError
from stargate.placement import place


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(changes)


def test_two_cores_one_engine_each_and_stages_in_turn() -> None:
    got = place(config(), cores=[0, 1], num_gpus=0)
    assert got.device == "cpu"
    assert (got.questioner_cores, got.roleplayer_cores) == (("0",), ("1",))
    assert (got.scorer_threads, got.trainer_threads) == (2, 2)
    assert not got.overlap


def test_all_cores_are_shared_and_own_settings_win() -> None:
    engines = {
        "questioner": {"engine": {"num_engines": 2}},
        "roleplayer": {"engine": {"cpu_cores": "6"}},
        "trainer": {"num_ranks": 2},
    }
    got = place(config(**engines), cores=[0, 1, 2, 3, 4, 5, 6], num_gpus=0)
    assert got.questioner_cores == ("0,1,2", "3,4")
    assert got.roleplayer_cores == ("6",)
    assert got.trainer_threads == 3


def test_too_few_cores_names_the_key() -> None:
    with pytest.raises(MachineError, match="2 engines need a core each, this machine has 1: lower"):
        place(config(), cores=[0], num_gpus=0)


def test_gpus_overlap_and_are_counted() -> None:
    got = place(config(scorer={"num_gpus": 1}), cores=list(range(8)), num_gpus=3)
    assert got.overlap
    assert got.questioner_cores == (None,)
    with pytest.raises(MachineError, match="needs 3 GPUs, this machine has 2"):
        place(config(scorer={"num_gpus": 1}), cores=[0, 1], num_gpus=2)


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(MachineError, match="no usable GPU: set device=cpu"):
        place(config(device="cuda"), cores=[0, 1], num_gpus=0)


def test_overlap_follows_the_config() -> None:
    assert place(config(schedule={"overlap": "always"}), [0, 1], 0).overlap
    assert not place(config(schedule={"overlap": "never"}), [0, 1], 2).overlap
