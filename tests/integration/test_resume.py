"""`stargate resume` as a user runs it: kill -9 on the whole run, then go on, with real engines."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from stargate.records.store import RunStore
from tests.integration.run_process import Command, Run

pytestmark = [pytest.mark.integration, pytest.mark.engines]

TABLES = ("dialogues", "scores", "selections", "examples")


def wait_for(run: Command, pattern: str, root: Path) -> None:
    deadline = time.monotonic() + 300
    while not list(root.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        assert run.process.poll() is None, run.finish()
        time.sleep(0.05)


def kill(run: Command) -> None:
    """The driver only: its engines, trainer and Ray must notice by themselves."""
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    # vLLM and Ray look for their parent now and then, and are slow at it on a busy machine.
    assert run.left_over(seconds=120.0) == [], "processes outlive a killed driver"


def resumed(root: Path) -> str:
    command = Command("resume", str(root))
    output = command.finish()
    assert command.process.returncode == 0, output
    assert command.left_over() == []
    return output


def rows(root: Path, scope: str, table: str) -> dict[str, Any]:
    """Rows by id, without what differs between any two runs."""
    found = list(RunStore(root).read(scope, table))
    key = {"dialogues": "id", "scores": "dialogue_id"}.get(table, "pair_id")
    by_id = {row[key]: {**row, "seconds": 0.0} for row in found}
    assert len(by_id) == len(found), f"{scope}/{table} has rows twice"
    return by_id


def test_a_killed_run_goes_on_and_ends_as_if_undisturbed(
    finished: tuple[Run, str], tmp_path: Path
) -> None:
    """One request at a time, so the same seed also gives the same dialogues, to the token.

    Every other moment to be killed at: test_resume_moments.py, with fakes.
    """
    undisturbed, _ = finished
    run = Run(tmp_path, "rollout.max_concurrent_dialogues=1")
    wait_for(run, "*/t0/dialogues/part-*.parquet", tmp_path)
    kill(run)
    kept = rows(run.dir, "t0", "dialogues")

    second = Command("resume", str(run.dir))
    wait_for(second, "*/environment-2.json", tmp_path)
    third = Command("resume", str(run.dir))
    assert "another process works on it right now" in third.finish()
    assert third.process.returncode == 3
    output = second.finish()
    assert second.process.returncode == 0, output
    assert second.left_over() == []

    for table in TABLES:
        found, expected = rows(run.dir, "t0", table), rows(undisturbed.dir, "t0", table)
        assert found.keys() == expected.keys()
        if table == "dialogues":
            assert found == expected
            assert kept.items() <= found.items()
    versions = {d["policy_version"] for d in rows(run.dir, "eval-m1", "dialogues").values()}
    assert versions == {1}
    events = [(e["event"], e.get("version")) for e in RunStore(run.dir).read_metrics()]
    assert events == [("evaluation", 0), ("iteration", None), ("evaluation", 1)]
    summary = json.loads((run.dir / "summary.json").read_text())
    assert (summary["status"], summary["sittings"]) == ("finished", 2)
    assert summary["rollout"]["num_dialogues"] == 8
    assert list(run.dir.rglob(".*.tmp")) == []
    assert "has finished; there is nothing to do" in resumed(run.dir)


def test_a_damaged_table_of_a_finished_run_is_made_again(
    finished: tuple[Run, str], tmp_path: Path
) -> None:
    run, _ = finished
    root = tmp_path / "run"
    shutil.copytree(run.dir, root)
    file = root / "eval-m1" / "dialogues.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    output = resumed(root)
    assert "damaged: eval-m1/dialogues.parquet: its checksum does not match" in output
    assert rows(root, "eval-m1", "dialogues") == rows(run.dir, "eval-m1", "dialogues")
    summary = json.loads((root / "summary.json").read_text())
    assert summary["damaged_files"] == ["eval-m1/dialogues.parquet.damaged-1"]
    assert "nothing to do" in resumed(root)
