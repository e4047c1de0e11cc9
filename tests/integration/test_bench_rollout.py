"""`stargate bench rollout` with real engines, small: it works, and all passes do equal work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "stargate.launch.cli", "bench", "rollout"]
SMALL = ["--dialogues", "6", "--turns", "2", "--rounds", "1", "--max-new-tokens", "6"]


@pytest.mark.integration
@pytest.mark.engines
def test_every_pass_does_the_same_work(tmp_path: Path) -> None:
    file = tmp_path / "rollout.json"
    run = subprocess.run(
        [*COMMAND, *SMALL, "--skip-reload", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result == json.loads(file.read_text(encoding="utf-8"))
    assert set(result) >= {"benchmark", "ratios", "figures", "hardware", "versions"}
    assert set(result["ratios"]) == {"vs_ceiling", "vs_lockstep"}

    figures = result["figures"]
    assert (figures["dialogues"], figures["turns"], figures["dropped"]) == (6, 12, 0)
    roles = figures["questioner"], figures["roleplayer"]
    assert [role["requests"] for role in roles] == [12, 12]
    assert all(1.0 <= role["tokens_per_text"] <= 6.0 for role in roles)
    work = [figures["work"][name] for name in ("pipeline", "ceiling", "lock_step")]
    for key in ("num_requests", "num_prompt_tokens", "num_generated_tokens"):
        assert len({one[key] for one in work}) == 1, key
    # Two dialogues' prompts begin alike, so some of each pass must have been found again.
    assert all(0 < one["num_cached_tokens"] < one["num_prompt_tokens"] for one in work)
    assert figures["driver_cpu_s"] > 0
    assert figures["cpu_seconds"]["pipeline"]["questioner_core"] > 0
