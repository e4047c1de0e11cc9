"""Commands as a user starts them, in processes of their own that a test can find and count."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from stargate.benchmarks.processes import Found, processes_of

# 2 tasks x 2 personas, 2 dialogues each, a training step or two; 1 x 2 to test.
SMALL = [
    *("data.train={tasks: 2, personas: 2}", "data.test={tasks: 1, personas: 2}"),
    *("rollout.num_dialogues=2", "rollout.turns=[1, 2]", "trainer.num_epochs=1"),
    *("trainer.batch_size=2", "trainer.validation_fraction=0", "evaluation.num_dialogues=1"),
    *("questioner.sampling.max_new_tokens=16", "roleplayer.sampling.max_new_tokens=24"),
    *("response.sampling.max_new_tokens=24", "evaluation.turns=[2]"),
    *("evaluation.judge=null", "evaluation.num_detailed_dialogues=1"),
    "evaluation.references=false",
]

# vLLM sets some of these in a process that it runs in, as tests' own engines do; a run that finds
# them starts its actors without its fork server.
_OPENMP = ("KMP_", "OMP_", "GOMP_", "LD_PRELOAD")
_AT_FIRST = frozenset(os.environ)


def _environment() -> dict[str, str]:
    """This process's, without what tests before have left of OpenMP's variables."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _AT_FIRST or not name.startswith(_OPENMP)
    }


class Command:
    """A `stargate` command in a session of its own, with a mark to find its processes by."""

    def __init__(self, *arguments: str) -> None:
        self._mark = f"STARGATE_TEST_MARK={uuid.uuid4()}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stargate.launch.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**_environment(), name: value},
            start_new_session=True,
        )

        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def finish(self) -> str:
        """All that it says, once it has ended."""
        self.process.wait(timeout=400)
        self._reader.join()
        return "".join(f"{line}\n" for line in self.lines)

    def wait(self, met: Callable[[], object], seconds: float = 300.0) -> None:
        """Until `met` is true of the command that goes on."""
        deadline = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            assert self.process.poll() is None, self.finish()
            time.sleep(0.02)

    def wait_for_line(self, pattern: str, count: int = 1) -> None:
        self.wait(lambda: sum(bool(re.match(pattern, line)) for line in self.lines) >= count)

    def left_over(self, seconds: float = 15.0) -> list[str]:
        """Command lines of processes of this run that still live, after a moment to end."""
        deadline = time.monotonic() + seconds
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return alive

    def _alive(self) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended while we looked, or is another user's
        return found


def kill_process(run_dir: Path, kind: str) -> Found:
    """Kills the last process of a kind that works on a run: of scorers and ranks the second."""
    victim = [one for one in processes_of(run_dir) if one.kind == kind][-1]
    os.kill(victim.pid, signal.SIGKILL)
    return victim


class Run(Command):
    """`stargate run cpu_demo`, small, into `runs_dir`."""

    def __init__(self, runs_dir: Path, *overrides: str) -> None:
        self.runs_dir = runs_dir
        super().__init__("run", "cpu_demo", *SMALL, f"runs_dir={runs_dir}", *overrides)

    @property
    def dir(self) -> Path:
        [folder] = self.runs_dir.iterdir()
        return folder

    def kill(self, kind: str) -> Found:
        return kill_process(self.dir, kind)
