"""`stargate bench train`, as small as it goes: it runs, and all sides do the same work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stargate.resources.models import resolve_model
from tests.integration.tiny_model import save_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def test_the_command_measures_all_sides_on_the_same_work(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tiny", resolve_model("embedded"))
    out = tmp_path / "train.json"
    command = [sys.executable, "-m", "stargate.launch.cli", "bench", "train", "--json", str(out)]
    options = "--dialogues 8 --batch-size 4 --micro-batch-size 2 --steps 1 --warmup-steps 1"
    finished = subprocess.run(
        [*command, "--model", str(model), "--threads", "1", "--lora", "4", *options.split()],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(out.read_text())
    assert json.loads(finished.stdout.splitlines()[-1]) == result
    assert {"benchmark", "ratios", "figures", "hardware", "versions"} <= result.keys()
    assert result["benchmark"] == "train"
    assert result["ratios"].keys() == {"vs_padded_trainer", "vs_bare_loop"}
    assert all(value > 0 for value in result["ratios"].values())
    figures = result["figures"]
    own = figures["ours"]
    # bfloat16 rounds in other places on each side; the same weights and examples give this loss.
    for side in ("padded_trainer", "bare_loop"):
        assert figures[side]["first_loss"] == pytest.approx(own["first_loss"], rel=0.01)
        assert figures[side]["last_loss"] == pytest.approx(own["last_loss"], rel=0.01)
    assert {"setup_s", "settle_s", "save_s", "peak_memory_gb"} <= own.keys()
    assert figures["work"]["steps"] == 1
    assert figures["work"]["packed"] is True
    assert figures["work"]["tokens"] > figures["work"]["loss_tokens"] > 0
