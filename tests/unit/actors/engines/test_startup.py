"""The noise log, the cause of a failed start, and the end of processes."""

import contextlib
import os
import subprocess
import sys
from multiprocessing import spawn
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from stargate.actors.engines import startup
from stargate.actors.engines.spec import EngineSpec
from stargate.actors.engines.startup import (
    NoiseLog,
    check_memory,
    child_processes,
    end_processes,
    first_exception,
    is_about_memory,
)
from stargate.actors.process.fork_server import FORKING_PYTHON
from stargate.config.run import EngineConfig
from stargate.errors import MachineError

VLLM_LOG = """\
(EngineCore pid=9) ERROR 11-22 22:17:30 [core.py:1512] Traceback (most recent call last):
(Worker pid=10) ERROR 11-22 22:17:30 [multiproc_executor.py:1063] ValueError: No valid head size
(EngineCore pid=9) ERROR [core.py:1512] Exception: WorkerProc initialization failed due to ...
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_first_exception_is_the_cause() -> None:
    assert first_exception(VLLM_LOG) == "ValueError: No valid head size"
    assert first_exception("torch.OutOfMemoryError: CUDA out of memory.") == (
        "OutOfMemoryError: CUDA out of memory."
    )
    assert first_exception("INFO all is well\nRuntimeError: See stack trace above") is None


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ("OutOfMemoryError: CUDA out of memory.", True),
        ("ValueError: Available memory on node 0 (1.0/9.4 GiB) on kv cache allocation", True),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", True),
        ("ValueError: No valid head size", False),
    ],
)
def test_causes_that_are_about_memory(cause: str, expected: bool) -> None:
    assert is_about_memory(cause) is expected


def test_noise_of_this_process_and_its_children_goes_to_the_log(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "engine.log"
    path.parent.mkdir()
    path.write_text("ValueError: of an earlier run\n")
    before = [os.fstat(target) for target in (1, 2)]
    log = NoiseLog(path)
    os.write(1, b"from us\n")
    subprocess.run(["sh", "-c", "echo from a child; echo KeyError: it >&2"], check=True)
    assert log.root_cause() == "KeyError: it"
    log.close()
    os.write(1, b"after\n")
    lines = path.read_text().splitlines()
    assert lines == ["ValueError: of an earlier run", "from us", "from a child", "KeyError: it"]
    assert [os.fstat(target).st_ino for target in (1, 2)] == [stat.st_ino for stat in before]


def test_too_little_memory_names_both_amounts() -> None:
    with pytest.raises(
        MachineError, match=r"questioner engine: needs about 1000000\.0 GB of memor"
    ):
        check_memory(1e6, "questioner engine")
    check_memory(0.0, "questioner engine")


def test_memory_is_what_the_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "memory", lambda: (4.0, 2.0))  # of a machine with far more
    with pytest.raises(MachineError, match=r"3\.0 GB of memory, 2\.1 GB are free"):
        check_memory(3.0, "questioner engine")


def test_what_libraries_compile_with_stands_beside_our_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A virtual environment that is not activated is not on the PATH, but its ninja is wanted."""
    monkeypatch.setattr(os, "environ", {"PATH": "/usr/bin"})
    platform = SimpleNamespace(device_type="elsewhere")
    modules = {"vllm.platforms": SimpleNamespace(current_platform=platform)}
    modules["vllm.v1.engine.async_llm"] = SimpleNamespace(AsyncLLM=None)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(MachineError, match="needs cuda, but the installed vLLM runs on elsewhere"):
        startup.start_vllm(EngineSpec("q", "/m", EngineConfig(), device="cuda"), None, None)
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_a_process_that_ignores_everything_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "END_SECONDS", 0.1)
    monkeypatch.setattr(startup, "SIGNAL_SECONDS", 0.5)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()  # the signal is ignored from here on
    process = psutil.Process(child.pid)
    assert process in child_processes()
    end_processes({process})
    assert not process.is_running()
    child.wait()
    child.stdout.close()


def test_the_core_is_forked_where_there_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = spawn.get_executable()
    for variables, expected in (({}, plain), ({FORKING_PYTHON: "/here/python"}, b"/here/python")):
        monkeypatch.setattr(os, "environ", variables)
        with startup._core_environment(contextlib.nullcontext()):
            assert spawn.get_executable() == expected
        assert spawn.get_executable() == plain
