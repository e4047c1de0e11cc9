"""`stargate bench iteration`, small: both sides play the same work, and the line has its names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.engines]

SMALL = [
    *("--tasks", "1", "--personas", "2", "--rounds", "1", "--no-train"),
    *("--set", "rollout.num_dialogues=2", "--set", "rollout.turns=[1]"),
    *("--set", "questioner.sampling.max_new_tokens=12"),
    *("--set", "response.sampling.max_new_tokens=8"),
    # One at a time: so that both sides sample the same tokens.
    *("--set", "rollout.max_concurrent_dialogues=1"),
]


def test_both_sides_make_the_same_records(tmp_path: Path) -> None:
    result = tmp_path / "iteration.json"
    command = [sys.executable, "-m", "stargate.launch.cli", "bench", "iteration"]
    done = subprocess.run(
        [*command, "--json", str(result), *SMALL], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == found
    assert (found["benchmark"], set(found["ratios"])) == ("iteration", {"vs_sequential"})
    figures = found["figures"]
    assert figures["same_selections"] == 1.0
    for side in ("sequential", "streamed"):
        assert (figures[side]["dialogues"], figures[side]["examples"]) == (4, 2)
        assert figures[side]["dropped"] == 0
        assert set(figures[side]["stage_s"]) == {"rollout", "score", "respond"}
        assert {"questioner-0", "roleplayer-0", "scorer-0"} < set(figures[side]["idle_share"])
    assert figures["sequential"]["generated_tokens"] == figures["streamed"]["generated_tokens"]
    # In turn means in turn.
    assert sum(figures["sequential"]["at_the_same_time_s"].values()) < 0.05
