"""Where processes are, what does not fit, and what to change then."""

from typing import Any

import pytest

from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.resources.gpu_phases import GpuPhase
from stargate.resources.model_shape import KNOWN, ModelShape, shape_of
from stargate.resources.placement import place
from stargate.resources.run_plan import (
    PlannedProcess,
    check_plan,
    on_cpus,
    phase_memory,
    plan_problems,
    plan_processes,
)

SMALL = shape_of(KNOWN["Qwen/Qwen2.5-0.5B-Instruct"])
MIDDLE = shape_of(KNOWN["Qwen/Qwen2.5-1.5B-Instruct"])
LARGE = shape_of(KNOWN["mistralai/Mistral-7B-Instruct-v0.2"])


def shapes(base: ModelShape, other: ModelShape = SMALL) -> dict[str, ModelShape | None]:
    return {"questioner": base, "scorer": base, "trainer": base, "roleplayer": other}


def planned(
    gpu_gib: float, base: ModelShape, num_gpus: int = 8, other: ModelShape = SMALL, **changes: Any
) -> tuple[RunConfig, list[PlannedProcess]]:
    config = RunConfig.model_validate(changes)
    placement = place(config, list(range(16)), num_gpus, gpu_gib=gpu_gib or None)
    sizes = {"gpu_gib": gpu_gib, "memory_gib": 16.0}
    return config, plan_processes(config, placement, shapes(base, other), **sizes)


def problems(
    gpu_gib: float, base: ModelShape, num_gpus: int = 8, other: ModelShape = SMALL, **changes: Any
) -> list[str]:
    config, processes = planned(gpu_gib, base, num_gpus, other, **changes)
    return list(plan_problems(config, processes, shapes(base, other)))


def test_gpus_are_given_out_in_order() -> None:
    tensor = {"engine": {"num_engines": 2, "tensor_parallel_size": 2}}
    _, processes = planned(
        80.0,
        SMALL,
        roleplayer=tensor,
        scorer={"num_gpus": 0.5},
        trainer={"num_gpus_per_rank": 0.5},
    )
    assert {process.name: process.gpus for process in processes} == {
        "questioner-0": (0,),
        "roleplayer-0": (1, 2),
        "roleplayer-1": (3, 4),
        "scorer-0": (5,),
        "trainer-0": (5,),
    }


def test_a_trainer_that_does_not_fit_is_told_the_mildest_change() -> None:
    (first, _) = problems(79.6, LARGE, trainer={"zero_stage": 3, "num_ranks": 2, "batch_size": 8})
    assert first == (
        "trainer-0 needs 89.6 GiB of GPU 3, which has 79.6: "
        "set trainer.activation_checkpointing=true (then 66.8 GiB)"
    )
    (only,) = problems(24.0, MIDDLE, trainer={})
    assert only == (
        "trainer-0 needs 44.8 GiB of GPU 3, which has 24.0: set trainer.lora={} (then 21.4 GiB)"
    )
    assert problems(24.0, MIDDLE, trainer={"lora": {}, "activation_checkpointing": True}) == []


def test_what_is_suggested_fits() -> None:
    for base, gib in ((MIDDLE, 24.0), (SMALL, 12.0), (LARGE, 48.0)):
        (line,) = (one for one in problems(gib, base) if one.startswith("trainer-0"))
        words = line.partition(": set ")[2].partition(" (then")[0].split()
        changes = {key.removeprefix("trainer."): value for key, value in map(_pair, words)}
        left = problems(gib, base, trainer={"batch_size": 4, **changes})
        assert not [one for one in left if one.startswith("trainer-0")], line


def _pair(word: str) -> tuple[str, object]:
    key, _, value = word.partition("=")
    return key, {"true": True, "{}": {}}.get(value, value)


def test_an_engine_that_can_not_hold_one_text() -> None:
    engine = {"engine": {"max_model_len": 500_000}}
    adapters = {"lora": {}, "micro_batch_size": 1}
    (line,) = problems(16.0, SMALL, other=MIDDLE, roleplayer=engine, trainer=adapters)
    assert line.startswith("roleplayer-0 needs 18.3 GiB of each of its GPUs for one text of 500000")
    assert line.endswith("is 13.6: lower roleplayer.engine.max_model_len, now 500000")
    (line,) = problems(12.0, SMALL, other=LARGE, trainer=adapters)
    assert line.endswith("raise roleplayer.engine.tensor_parallel_size, or take a smaller model")


def test_two_on_one_gpu_are_counted_together() -> None:
    (line,) = problems(
        24.0, MIDDLE, scorer={"num_gpus": 0.5}, trainer={"num_gpus_per_rank": 0.5, "lora": {}}
    )
    assert line.startswith("scorer-0, trainer-0 together need ")
    assert "set trainer.activation_checkpointing=true (then" in line


def colocated(**changes: Any) -> dict[str, Any]:
    engine = {"engine": {"gpu_memory_utilization": 0.4}}
    shared = {"cluster": {"strategy": "colocated"}, "questioner": engine, "roleplayer": engine}
    return shared | changes


def test_every_phase_has_a_budget() -> None:
    _, processes = planned(24.0, SMALL, 1, **colocated(trainer={"micro_batch_size": 2}))
    config = RunConfig.model_validate(colocated())
    needs = {process.role: process.needs_gib for process in processes}
    found = phase_memory(config, processes)
    # Four processes keep CUDA's context, 0.75 GiB each, asleep or awake.
    assert found[GpuPhase.PLAY] == pytest.approx(0.8 * 24 + 2 * 0.75)
    assert found[GpuPhase.SCORE] == pytest.approx(needs["scorer"] + 3 * 0.75)
    assert found[GpuPhase.TRAIN] == pytest.approx(needs["trainer"] + 3 * 0.75)
    # 22 bytes per parameter with gradients on their way, logits and activations beside them.
    assert needs["trainer"] * 2**30 > 22 * SMALL.parameters


def test_a_phase_that_does_not_fit_names_what_to_change() -> None:
    (line,) = problems(24.0, MIDDLE, 1, **colocated())
    assert line.startswith("cluster.strategy is 'colocated': the train phase needs 47.0 GiB of the")
    assert line.endswith("set trainer.lora={} (then 21.4 GiB)")
    adapters = {"lora": {}, "activation_checkpointing": True}
    assert problems(24.0, MIDDLE, 1, **colocated(trainer=adapters)) == []


def test_on_cpus_the_sum_counts() -> None:
    config, processes = planned(0.0, SMALL, 0)
    assert {process.device for process in processes} == {"cpu"}
    with pytest.raises(MachineError, match=r"need [\d.]+ GiB of this machine's memory.*has 16\.0"):
        check_plan(config, processes, shapes(SMALL))


def test_a_part_on_the_cpu_of_a_run_on_gpus_is_said_aloud() -> None:
    config = RunConfig.model_validate({"scorer": {"num_gpus": 0}})
    (line,) = on_cpus(place(config, [0, 1], 3))
    assert line.startswith("note: the scorer computes on the CPU in a run on GPUs (scorer.num_gpus")
    assert on_cpus(place(RunConfig(), [0, 1], 4)) == []
    assert on_cpus(place(RunConfig(), [0, 1], 0)) == []


def test_a_model_that_is_not_known_is_no_problem() -> None:
    config = RunConfig()
    placement = place(config, [0, 1], 4)
    unknown = dict.fromkeys(shapes(SMALL))
    processes = plan_processes(config, placement, unknown, gpu_gib=24.0, memory_gib=16.0)
    assert all(process.memory is None for process in processes)
    assert list(plan_problems(config, processes, unknown)) == []
