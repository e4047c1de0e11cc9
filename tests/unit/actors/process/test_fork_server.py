"""Processes forked with their imports done: they are what a start of Python would have made them.

No engine's modules here: decimal stands for what is imported once.
"""

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import setproctitle

from stargate.actors.process.fork_server import forking_python

# Named as Ray's workers are. It says what it is, then ends as it is told.
WORKER = """
import gc, json, os, signal, sys
print(json.dumps({
    "argv": sys.argv[1:], "path": sys.path[0], "folder": os.getcwd(), "main": __name__,
    "variable": os.environ.get("VARIABLE"), "server's": os.environ.get("SERVERS"),
    "gc": gc.isenabled(), "group": os.getpgid(0),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "files": [n for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)],
    "decimal": "decimal" in sys.modules, "pid": os.getpid(), "cores": list(os.sched_getaffinity(0)),
}), flush=True)
line = sys.stdin.readline()
sys.exit(int(line) if line.strip() else "it was not told")
"""
SAME = ("argv", "path", "folder", "main", "variable", "server's", "gc", "interrupt", "files")


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    with forking_python(["decimal"], {"SERVERS": "1"}) as script:
        assert script is not None
        yield script
    assert not Path(script).exists()


class Worker:
    """One that has said what it is."""

    def __init__(self, python: str, folder: Path, **environment: str) -> None:
        script = folder / "default_worker.py"
        script.write_text(WORKER)
        with (folder / "given").open("w") as given:  # a file beside the three
            self.client = subprocess.Popen(
                [python, str(script), "--a", "b c"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[given.fileno()],
                cwd=folder,
                env={**os.environ, "VARIABLE": "x\udcff", **environment},
                process_group=0,
            )
        assert self.client.stdout is not None
        self.told: dict[str, Any] = json.loads(self.client.stdout.readline())
        self.pid: int = self.told["pid"]

    def end(self, line: str = "0\n") -> int:
        """Its exit code."""
        self.client.communicate(line.encode(), timeout=60)
        return self.client.returncode

    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()


def test_it_is_what_a_start_makes_it_but_for_its_imports(python: str, tmp_path: Path) -> None:
    forked, started = Worker(python, tmp_path), Worker(sys.executable, tmp_path)
    assert {name: forked.told[name] for name in SAME} == {n: started.told[n] for n in SAME}
    assert forked.told["decimal"] and not started.told["decimal"]
    assert forked.told["server's"] is None
    # Whoever started it finds it in the group of its child: that is how Ray ends an actor's own.
    assert forked.told["group"] == forked.client.pid != forked.pid
    assert forked.end("7\n") == started.end("7\n") == 7


def test_cores_are_those_that_openmp_would_take(python: str, tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    worker = Worker(python, tmp_path, OMP_PLACES=f"{{{core}}}")
    assert worker.told["cores"] == [core]
    assert worker.end() == 0


def test_an_error_is_told(python: str, tmp_path: Path) -> None:
    worker = Worker(python, tmp_path)
    _, errors = worker.client.communicate(b"\n")
    assert (worker.client.returncode, errors) == (1, b"it was not told\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_client_ends_as_it_does(number: signal.Signals, python: str, tmp_path: Path) -> None:
    worker = Worker(python, tmp_path)
    os.kill(worker.pid, number)
    assert worker.end() == -number


def test_asking_its_client_to_end_asks_it(python: str, tmp_path: Path) -> None:
    worker = Worker(python, tmp_path)
    worker.client.terminate()
    assert worker.end() == -signal.SIGTERM
    assert not worker.alive()


def test_killing_its_client_kills_it(python: str, tmp_path: Path) -> None:
    worker, other = Worker(python, tmp_path), Worker(python, tmp_path)
    end = os.pidfd_open(worker.pid)
    worker.client.kill()
    select.select([end], [], [])
    os.close(end)
    assert other.alive()
    assert other.end() == 0


def test_it_outlives_its_server_and_the_next_is_started_anew(tmp_path: Path) -> None:
    with forking_python(["decimal"], {}) as script:
        assert script is not None
        worker = Worker(script, tmp_path)
        os.kill(psutil.Process(worker.pid).ppid(), signal.SIGKILL)
        assert Worker(script, tmp_path).told["decimal"] is False
        assert worker.alive()
        worker.client.communicate(b"0\n", timeout=60)


def test_where_modules_fail_to_import_processes_are_started(tmp_path: Path) -> None:
    with forking_python(["no_such_module"], {}) as script:
        assert script is not None
        worker = Worker(script, tmp_path)
        assert worker.told["decimal"] is False
        assert worker.end("3\n") == 3


def test_any_other_command_is_pythons(python: str) -> None:
    asked = [python, "-c", "import sys; print('decimal' in sys.modules)"]
    assert subprocess.check_output(asked, text=True) == "False\n"


def test_spawned_processes_are_forked(python: str) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), name="core")
    multiprocessing.set_executable(python)
    try:
        process.start()
    finally:
        multiprocessing.set_executable(sys.executable)
    theirs.close()
    has_decimal, parent, name = ours.recv()
    assert has_decimal and (parent, name) == (os.getpid(), "core")
    assert psutil.Process(ours.recv()).cmdline()[0] == "VLLM::EngineCore"
    ours.send(5)
    process.join(60)
    assert process.exitcode == 5


def _serve(pipe: Any) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    pipe.send(("decimal" in sys.modules, parent.pid, multiprocessing.current_process().name))
    setproctitle.setproctitle("VLLM::EngineCore")  # by which `stargate bench` finds it
    pipe.send(os.getpid())
    sys.exit(pipe.recv())


@pytest.mark.parametrize("variable", ["OMP_PLACES", "KMP_AFFINITY", "LD_PRELOAD"])
def test_where_openmp_must_read_its_variables_processes_are_started(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "")
    with forking_python(["decimal"], {}) as script:
        assert script is None
