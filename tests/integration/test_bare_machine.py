"""tests/gpu/bare_machine.sh, dry-run on a CPU: the cheap steps, one that fails, one too many."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

_SCRIPT = Path(__file__).parents[1] / "gpu" / "bare_machine.sh"

# Written where python looks first, it keeps everything of these names from being imported.
_NEITHER = """
import sys


class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "vllm", "pytest"):
            raise ImportError(f"{name}: not on a bare machine")


sys.meta_path.insert(0, Without())
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, lines and the rest of the output, on a machine without vLLM, Ray and pytest."""
    (tmp_path / "sitecustomize.py").write_text(_NEITHER)
    done = subprocess.run(
        [str(_SCRIPT), "--small", *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        },
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_cheap_steps_pass_on_a_cpu_without_vllm_and_ray(tmp_path: Path) -> None:
    code, lines, log = run(tmp_path, "--device", "cpu", "packing", "tree", "memory", "speed")
    assert code == 0, log
    assert [line["step"] for line in lines] == ["packing", "tree", "memory", "speed"]
    assert all(line["ok"] and line["problems"] == [] for line in lines)
    packing, tree, memory, speed = lines
    assert packing["logits_gap"] < 0.02
    assert tree["head128_float32"]["largest_gap_nats"] < 1e-4
    assert memory["plain"]["peak_gib"] is None  # nothing was measured, and nothing is said
    assert memory["plain"]["computed_gib"] > 0
    assert len([key for key in speed if key.endswith("_mib")]) == 6


def test_a_step_that_can_not_run_here_is_a_line_that_says_so(tmp_path: Path) -> None:
    code, [line], _ = run(tmp_path, "--device", "cuda", "packing")
    assert code == 1
    assert line["step"] == "packing" and line["ok"] is False and line["problems"]
