"""`stargate bench scale` small: a real Ray cluster, real records, simulated engines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def test_the_command_measures_and_says_that_it_simulates(tmp_path: Path) -> None:
    """Ten dialogues per engine pair; that every record is there is checked by the command."""
    file = tmp_path / "scale.json"
    options = ["--pairs", "1", "64", "--per-pair", "10", "--curve", "fast", "--workers", "1"]
    options += ["--dialogues", "100", "--limit-pairs", "1", "--max-new-tokens", "12"]
    command = [sys.executable, "-m", "stargate.launch.cli", "bench", "scale", *options]
    done = subprocess.run(
        [*command, "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert result["benchmark"] == "scale"
    assert set(result["ratios"]) == {"linear_64"}
    figures = result["figures"]
    assert "SIMULATED" in figures["simulated"]
    assert "SIMULATED" in done.stdout
    assert {"turns_per_s", "driver_rss_gb", "ray_calls_per_turn"} <= set(figures)
    # The same work per engine pair.
    assert [figures[f"pairs_{n}"]["dialogues"] for n in (1, 64)] == [10, 640]
    assert figures["orchestrator_limit"]["dialogues"] == 100
    assert 0 < figures["ray_calls_per_turn"] < 3
    assert set(figures["pairs_64"]["cpu_ms_per_turn"]) == {
        *("driver", "dialogue_workers", "simulated_engines", "simulated_scorer", "ray_daemons")
    }
