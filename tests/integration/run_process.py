"""Commands as a user starts them, in processes of their own that a test can find and count."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

# 2 tasks x 2 personas, 2 dialogues each, a training step or two; 1 x 2 to test.
SMALL = [
    *("data.train={tasks: 2, personas: 2}", "data.test={tasks: 1, personas: 2}"),
    *("rollout.num_dialogues=2", "rollout.turns=[1, 2]", "trainer.num_epochs=1"),
    *("trainer.batch_size=2", "trainer.validation_fraction=0", "evaluation.num_dialogues=1"),
    *("questioner.sampling.max_new_tokens=16", "roleplayer.sampling.max_new_tokens=24"),
    *("response.sampling.max_new_tokens=24", "evaluation.num_turns=2"),
    *("evaluation.judge=null", "evaluation.num_detailed_dialogues=1"),
]


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
            env={**os.environ, name: value},
            start_new_session=True,
        )

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=400)
        return output

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


class Run(Command):
    """`stargate run cpu_demo`, small, into `runs_dir`."""

    def __init__(self, runs_dir: Path, *overrides: str) -> None:
        self.runs_dir = runs_dir
        super().__init__("run", "cpu_demo", *SMALL, f"runs_dir={runs_dir}", *overrides)

    @property
    def dir(self) -> Path:
        [folder] = self.runs_dir.iterdir()
        return folder
