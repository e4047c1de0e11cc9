"""What the doctor says of GPUs."""

from dataclasses import replace

import pytest

from stargate.launch import doctor
from stargate.resources import preflight
from stargate.resources.gpus import Gpu
from stargate.resources.machine import describe_machine

OLD = Gpu("NVIDIA T4", 15.0, "570.1", (7, 5), "GPU-1")
NEW = Gpu("NVIDIA H200", 140.0, "580.95", (9, 0), "GPU-2")


@pytest.mark.parametrize(
    ("gpu", "build", "expected"),
    [
        (OLD, "cpu", {"warn"}),  # the demo runs all the same
        (OLD, "cuda", {"fail"}),
        (NEW, "cpu", set()),
        (NEW, "cuda", set()),
    ],
)
def test_an_old_driver_is_judged_by_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, build: str, expected: set[str]
) -> None:
    monkeypatch.setattr(preflight, "vllm_build", lambda: build)
    monkeypatch.setattr(preflight, "gpus", lambda: (gpu,))
    monkeypatch.setattr(doctor, "gpu_problem", lambda: None)
    machine = replace(describe_machine(), gpus=(gpu,))
    found = [*doctor._hardware(machine), *doctor._toolchain(machine)]
    judged = {finding.level for finding in found if "CUDA 13 needs 580" in finding.advice}
    assert judged == expected
    half = [finding.level for finding in found if "no bfloat16" in finding.value]
    assert half == (["warn"] if gpu is OLD else [])


def test_a_hidden_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_problem", lambda: "CUDA_VISIBLE_DEVICES='' names 0")
    machine = replace(describe_machine(), gpus=())
    [finding] = [f for f in doctor._hardware(machine) if f.topic == "gpu"]
    assert (finding.value, finding.level) == ("0 usable", "warn")


def test_a_gpu_build_without_a_gpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "vllm_build", lambda: "cuda")
    monkeypatch.setattr(doctor, "describe_machine", lambda: replace(describe_machine(), gpus=()))
    failed = [f for f in doctor.examine() if f.level == "fail" and f.topic == "gpu"]
    assert [f.advice for f in failed] == [
        "vLLM is built for GPUs; for the CPU: make install, in another checkout"
    ]
