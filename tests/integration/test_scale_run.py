"""`stargate scale` on a run with real engines: a second Questioner joins, serves, and leaves again.

What happens at which moment of a push or a start is shown with fakes in
tests/unit/test_join_leave.py; here vLLM, Ray, processes and files are real.
"""

import json
import os
import re
from pathlib import Path

import pytest

from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from tests.integration.run_process import Command, Run

pytestmark = [pytest.mark.integration, pytest.mark.engines]

NUM_PAIRS = 4
NUM_DIALOGUES = 8


def scale(run: Run, *words: str) -> tuple[int, str]:
    command = Command("scale", str(run.dir), *words)
    output = command.finish()
    return command.process.returncode, output


def test_an_engine_joins_a_run_serves_and_leaves(tmp_path: Path) -> None:
    """It joins while m_0 plays, so that the push of m_1 must reach it, and leaves under m_1."""
    cores = sorted(os.sched_getaffinity(0))
    run = Run(
        tmp_path,
        f"rollout.num_dialogues={NUM_DIALOGUES}",
        "rollout.max_concurrent_dialogues=4",  # so that there is work for two
        "rollout.num_workers=1",  # which must hear of it, too
        "schedule.num_iterations=2",
        "evaluation.enabled=false",
        "scorer.num_scorers=1",
        # The engines of a role share these: a machine of two cores has none left for a third one.
        f"questioner.engine.cpu_cores='{cores[0]}'",
        f"roleplayer.engine.cpu_cores='{cores[-1]}'",
    )
    run.wait(lambda: list(tmp_path.glob("*/t0/dialogues/part-*.parquet")))
    code, output = scale(run, "questioner=2")
    assert code == 0, output
    assert output.splitlines()[-1] == "now questioner=2 roleplayer=1"
    run.wait(lambda: list(tmp_path.glob("*/t1/dialogues/part-*.parquet")))
    code, output = scale(run, "questioner=1")
    assert code == 0, output
    assert output.splitlines()[-1] == "now questioner=1 roleplayer=1"
    output = run.finish()
    assert run.process.returncode == 0, output
    assert run.left_over() == []
    assert "Traceback" not in output

    joined = re.search(
        r"questioner-1 has joined after [0-9.]+ s, with weights version (0|1)", output
    )
    left = re.search(r"questioner-1 has left, after ([0-9]+) requests", output)
    assert joined and left, output
    assert int(left[1]) >= 2, output  # it did serve
    log = (run.dir / "logs" / "driver.log").read_text()
    assert joined[0] in log and left[0] in log
    assert not (run.dir / "scale.json").exists()

    summary = json.loads((run.dir / "summary.json").read_text())
    assert (summary["joined"], summary["left"]) == ({"questioner": 1}, {"questioner": 1})
    assert (summary["dropped"], summary["restarts"], summary["resent"]) == ({}, {}, {})
    assert (summary["push"]["version"], summary["push"]["num_engines"]) == (2, 1)
    events = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    pushes = [event["num_engines"] for event in events if event["event"] == "iteration"]
    # m_1 went into both; on a machine where an engine starts more slowly than m_1 is trained, it
    # came with m_1.
    assert pushes == ([2, 1] if joined[1] == "0" else [1, 1])
    for version in (0, 1):
        rows = RunStore(run.dir).read(f"t{version}", "dialogues")
        dialogues = [dialogue_from_row(row) for row in rows]
        assert len({dialogue.id for dialogue in dialogues}) == NUM_PAIRS * NUM_DIALOGUES
        assert len(dialogues) == NUM_PAIRS * NUM_DIALOGUES
        assert {dialogue.policy_version for dialogue in dialogues} == {version}
