"""A full disk, really: a file system that fills up under a run, and output that has no place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stargate.errors import MachineError

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_to_a_full_disk_is_one_line(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stargate.launch.cli", "data", "show", "starter"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == MachineError.exit_code
    [line] = done.stderr.splitlines()
    assert line.startswith("stargate data: ") and "the disk is full" in line


# A file system of its own with 256 KiB, which the process fills and its owner then makes larger.
_REAL = """
import asyncio, subprocess, sys
from pathlib import Path
from stargate.errors import MachineError
from stargate.training_loop import run_iteration
from stargate.records.repair import repair, discovery
from tests.fakes.scripted import make_pair
from tests.unit.test_pair_steps import roles, run_context

root = Path(sys.argv[1])
def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(root)], check=True)

mount("size=256k")
pairs = [make_pair(task=f"t{i}") for i in range(150)]
changes = {"schedule": {"wave_pairs": 10}}
try:
    asyncio.run(run_iteration(0, pairs, roles(), run_context(root, **changes)))
except MachineError as error:
    print("stopped:", error)
assert discovery(root) == [], discovery(root)
context = run_context(root, **changes)
before = context.store.num_rows("t0", "dialogues")
mount("remount,size=64m")
repair(root, [])
asyncio.run(run_iteration(0, pairs, roles(), context))
ids = [row["id"] for row in context.store.read("t0", "dialogues")]
print("went on:", before, context.counters.dialogues["t0"], len(ids), len(set(ids)))
"""


def test_a_real_file_system_that_fills_up(tmp_path: Path) -> None:
    unshare = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount"]
    tried = subprocess.run(
        [*unshare, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True
    )
    if tried.returncode:
        pytest.skip("this machine lends no mount namespace")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", _REAL, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("stopped", "went on"))]
    assert "the disk is full (0.0 of 0 MiB are free)" in lines[0]
    before, again, total, distinct = map(int, lines[1].split()[2:])
    assert (total, distinct) == (450, 450)
    assert before > 0 and again == 450 - before
