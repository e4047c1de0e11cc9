"""`stargate resume` as a user runs it: a run that was killed goes on, with real engines."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from stargate.records.store import RunStore
from stargate.records.training_checkpoints import CheckpointFolder, training_folder
from tests.integration.run_process import Command, Run, kill_process

pytestmark = [pytest.mark.integration, pytest.mark.engines]

TABLES = ("dialogues", "scores", "selections", "examples")


def kill(run: Command) -> None:
    """The driver only: its engines, trainer and Ray must notice by themselves."""
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    # vLLM and Ray look for their parent now and then, and are slow at it on a busy machine.
    assert run.left_over(seconds=120.0) == [], "processes outlive a killed driver"


def rows(root: Path, scope: str, table: str) -> dict[str, Any]:
    """Rows by id, without what differs between any two runs."""
    found = list(RunStore(root).read(scope, table))
    key = {"dialogues": "id", "scores": "dialogue_id"}.get(table, "pair_id")
    by_id = {row[key]: {**row, "seconds": 0.0} for row in found}
    assert len(by_id) == len(found), f"{scope}/{table} has rows twice"
    return by_id


def test_a_run_that_is_killed_twice_and_damaged_ends_as_if_undisturbed(
    finished: tuple[Run, str], tmp_path: Path
) -> None:
    """Killed in the middle of dialogues; the trainer in the middle of training, then all of it
    again; and a table is damaged. One request at a time, so the same seed gives the same dialogues,
    to the token.

    Every other moment to be killed at: test_resume_moments.py, with fakes.
    """
    undisturbed, _ = finished
    run = Run(
        tmp_path,
        "rollout.max_concurrent_dialogues=1",
        "trainer.num_epochs=15",  # 30 steps: enough to be in the middle of them
        "trainer.lora={rank: 4}",  # small checkpoints
        "trainer.checkpoint_steps=2",
    )
    run.wait(lambda: list(tmp_path.glob("*/t0/dialogues/part-*.parquet")))
    kill(run)
    kept = rows(run.dir, "t0", "dialogues")

    second = Command("resume", str(run.dir))
    second.wait(lambda: list(tmp_path.glob("*/environment-2.json")))
    third = Command("resume", str(run.dir))
    assert "another process works on it right now" in third.finish()
    assert third.process.returncode == 3
    second.wait(lambda: list(tmp_path.glob("*/t0/training/step-2")))
    kill_process(run.dir, "trainer")
    second.wait_for_line("trainer-0 is back")
    second.wait_for_line(r"training goes on from step \d+ of 30$")
    assert "training m1 begins again" not in second.lines
    checkpoints = training_folder(run.dir, 1)
    last = CheckpointFolder(checkpoints).steps()[0]
    kill(second)

    file = run.dir / "eval-m0" / "dialogues.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    fourth = Command("resume", str(run.dir))
    output = fourth.finish()
    assert fourth.process.returncode == 0, output
    assert fourth.left_over() == []
    assert "damaged: eval-m0/dialogues.parquet: its checksum does not match" in output
    [line] = [line for line in fourth.lines if line.startswith("training goes on from step")]
    assert int(line.split()[5]) >= last

    for table in TABLES:
        found, expected = rows(run.dir, "t0", table), rows(undisturbed.dir, "t0", table)
        assert found.keys() == expected.keys()
        if table == "dialogues":
            assert found == expected
            assert kept.items() <= found.items()
    assert rows(run.dir, "eval-m0", "dialogues") == rows(undisturbed.dir, "eval-m0", "dialogues")
    versions = {d["policy_version"] for d in rows(run.dir, "eval-m1", "dialogues").values()}
    assert versions == {1}
    metrics = RunStore(run.dir).read_metrics()
    events = [(e["event"], e.get("version")) for e in metrics]
    assert events == [("evaluation", 0), ("iteration", None), ("evaluation", 1)]
    assert len(metrics[1]["train_losses"]) == len(metrics[1]["grad_norms"]) == 30
    summary = json.loads((run.dir / "summary.json").read_text())
    assert (summary["status"], summary["sittings"]) == ("finished", 3)
    assert "rollout" not in summary  # whoever played was killed before it could say how long
    assert summary["repeated_steps"] == metrics[1]["num_repeated_steps"] <= 6
    assert summary["damaged_files"] == ["eval-m0/dialogues.parquet.damaged-1"]
    assert not checkpoints.exists()
    assert list(run.dir.rglob(".*.tmp")) == []

    again = Command("resume", str(run.dir))
    assert "has finished; there is nothing to do" in again.finish()
    assert again.process.returncode == 0
