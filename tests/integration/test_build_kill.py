"""A build that is killed again and again ends with the very bytes of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from stargate.data.build.config import BuildConfig
from tests.fakes.build_answers import behave, build_config
from tests.fakes.misbehaving_server import MisbehavingServer

pytestmark = pytest.mark.integration

NUM_KILLS = 20
FILES = ("tasks.jsonl", "personas.jsonl", "golds.jsonl")
ROWS = {"A": [0, 30], "B": [30, 60], "test": [60, 70]}
COUNT = {"A": 14, "B": 14, "test": 6}
NUM_PAIRS = 30 * 14 * 2 + 10 * 6
WIDTH = 4


def write_config(url: str, folder: Path) -> Path:
    folder.mkdir()
    (folder / "tasks.txt").write_text("".join(f"How do I do thing {n}?\n" for n in range(70)))
    config: BuildConfig = build_config(url, folder)
    tree = config.model_dump(mode="json")
    tree["tasks"]["rows"] = ROWS
    tree["personas"]["count"] = COUNT
    tree["oracle"]["limits"]["max_concurrency"] = WIDTH
    file = folder / "build.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def start(config: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "stargate.launch.cli", "data", "build", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(config: Path) -> str:
    """What the command said that ran to its end."""
    process = start(config)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(20240403)
    with MisbehavingServer(behave()) as server:
        calm = write_config(server.url, tmp_path / "calm")
        finished(calm)
        calls = len(server.seen)

        rough = write_config(server.url, tmp_path / "rough")
        out = tmp_path / "rough" / "out"
        kills: list[int] = []
        for _ in range(NUM_KILLS):
            process = start(rough)
            # After so many answers more, or (one in four) after so many seconds, whatever is done.
            goal = len(server.seen) + rng.randrange(1, 45)
            until = time.monotonic() + (rng.uniform(0.0, 1.2) if rng.random() < 0.25 else 20.0)
            while process.poll() is None and len(server.seen) < goal and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.005))
            assert process.poll() is None, process.communicate()[0]
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=20)
            kills.append(len(server.seen) - calls)
            assert not out.exists()
        assert len(set(kills)) > NUM_KILLS // 2  # most came in the middle of the work
        assert f"{NUM_PAIRS} golds" in finished(rough)
        # Only what was in flight at a kill is asked twice.
        assert calls <= len(server.seen) - calls <= calls + WIDTH * NUM_KILLS
        asked = len(server.seen)
        assert "nothing to do" in finished(rough)
        assert len(server.seen) == asked
    for file in FILES:
        one, other = tmp_path / "calm/out" / file, out / file
        assert one.read_bytes() == other.read_bytes(), file
    assert len((out / "golds.jsonl").read_text().splitlines()) == NUM_PAIRS
    assert not list(tmp_path.glob("rough/*.partial"))
