"""A build by a real model: with an engine of the command (with a server: test_oracle_vllm.py).

The embedded model of 135M parameters writes poor personas and leaves some golds unfinished: what is
tested is that every answer becomes what it is, and is counted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stargate.data.dataset import read_dataset

pytestmark = [pytest.mark.integration, pytest.mark.engines]

TASKS = ("What should I cook tonight?", "Which pet fits me?", "What can I do on Sunday?")
CONFIG: dict[str, Any] = {
    "prompts": "small",
    "personas": {
        "type": "generate",
        "count": {"test": 2},
        "temperature": 0.7,
        "max_tokens": 250,
        "min_words": 10,
        "max_attempts": 20,  # most of what it writes goes on until it is cut off
        "facts": {"minimum": 1, "max_tokens": 200},
    },
    # Greedy, so small a model repeats itself without end.
    "golds": {"max_tokens": 300, "temperature": 0.7},
}


def build(
    folder: Path, oracle: dict[str, Any], key: str = "", **more: Any
) -> tuple[str, dict[str, Any]]:
    """Runs the command twice; returns what it said first, and its report. `key` is the server's."""
    (folder / "tasks.txt").write_text("\n".join(TASKS))
    tree = {
        **CONFIG,
        "out": str(folder / "out"),
        "tasks": {"type": "file", "path": str(folder / "tasks.txt"), "rows": {"test": [0, 3]}},
        "oracle": oracle,
        **more,
    }
    file = folder / "build.yaml"
    file.write_text(yaml.safe_dump(tree))
    # The engine wants ninja, which stands beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    said = []
    for _ in range(2):
        command = [sys.executable, "-m", "stargate.launch.cli", "data", "build", str(file)]
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": path, "STARGATE_TEST_KEY": key},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert "nothing to do" in said[1]
    report: dict[str, Any] = json.loads((folder / "out/build-report.json").read_text())
    return said[0], report


def check(folder: Path, report: dict[str, Any]) -> None:
    """The folder is a dataset, and everything that was asked is accounted for."""
    dataset = read_dataset(folder / "out")
    people = list(dataset.personas.values())
    assert len(people) == 2
    assert len({p.name for p in people}) == len({p.text for p in people}) == 2
    assert all(p.facts for p in people)
    missing = sum(report["missing_golds"]["counts"].values())
    assert len(dataset.golds) + missing == 6
    assert len(dataset.golds) >= 1
    rejected = report["sources"]["personas_not_used"]["counts"]
    calls = report["sources"]["persona_calls"] + 6
    assert report["cost"]["calls"] == calls >= 10
    assert report["sources"]["persona_rounds"] == 1 or rejected
    print(rejected, report["sources"]["facts"], report["missing_golds"]["counts"])


def test_build_with_an_engine_of_its_own(tmp_path: Path) -> None:
    said, report = build(
        tmp_path,
        {"type": "local"},
        engine={"max_model_len": 1024, "max_num_seqs": 16, "cpu_kv_cache_gb": 0.5},
    )
    check(tmp_path, report)
    assert "starting an engine" in said
    assert "golds: 6 pairs" in said
    assert report["model"].startswith("smollm2")
    assert report["cost"]["money"] == 0
