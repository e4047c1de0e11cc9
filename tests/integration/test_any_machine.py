"""Ray as a run starts it, twice at once, where sockets and shared memory are hard to come by.

Both have a TMPDIR in which no socket can be named, and, where a test may mount, 64 MB of /dev/shm,
as containers have it. Each must work, and see itself only.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.engines]

PROGRAM = """
import json, sys
import numpy as np
import ray
from stargate.actors.runtime.spawn import start_ray

class Actor:
    def total(self, values):
        return int(values.sum())

start_ray(0)
actor = ray.remote(Actor).options(num_cpus=0).remote()
values = ray.put(np.ones(100_000_000, np.uint8))  # more than the small /dev/shm holds
found = {"total": ray.get(actor.total.remote(values)), "nodes": len(ray.nodes())}
print(json.dumps(found), flush=True)
sys.stdin.read()  # until the other one has answered, too
ray.shutdown()
"""
MOUNT = "mount --make-rprivate / && mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm && exec "


def in_small_memory(command: list[str]) -> list[str]:
    """The command with 64 MB of /dev/shm of its own, where the system lets us; else as it is."""
    shell = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*shell, f"{MOUNT} true"], capture_output=True).returncode != 0:
        return command
    return [*shell, f'{MOUNT} "$@"', "sh", *command]


def test_two_runs_at_once_where_no_socket_can_be_named(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    running = []
    for name in ("l" * 90, "é"):
        folder = tmp_path / name
        folder.mkdir()
        environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.getcwd()}
        running.append(
            subprocess.Popen(
                in_small_memory([sys.executable, str(script)]),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    answers = [process.stdout.readline() for process in running if process.stdout]
    for process, answer in zip(running, answers, strict=True):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert json.loads(answer) == {"total": 100_000_000, "nodes": 1}, errors
