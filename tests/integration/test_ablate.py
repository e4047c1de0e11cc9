"""`stargate ablate` with real engines: conditions share what m_0 did, and differ in the rest."""

import json
import re
from pathlib import Path

import pytest

from stargate.records.store import RunStore
from tests.integration.run_process import SMALL, Command

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def test_conditions_share_m0_and_stand_in_one_report(tmp_path: Path) -> None:
    command = Command(
        *("ablate", "cpu_demo", *SMALL, f"runs_dir={tmp_path}"),
        *("--conditions", "own_response,questions_only,weaker_roleplayer"),
    )
    output = command.finish()
    assert command.process.returncode == 0, output
    assert command.left_over() == []
    # One trainer trains both: the first one's finished steps must not be shown as the second's.
    shown = [float(seconds) for seconds in re.findall(r"train: done in ([\d.]+) s", output)]
    assert len(shown) == 2 and min(shown) > 0.5
    [root] = tmp_path.iterdir()
    conditions = json.loads((root / "ablation.json").read_text())["conditions"]
    assert set(conditions) == {"own_response", "questions_only", "weaker_roleplayer"}
    assert (root / "report.html").is_file()

    own, other = RunStore(root / "own_response"), RunStore(root / "questions_only")
    for scope, table in (("eval-m0", "dialogues"), ("t0", "dialogues"), ("t0", "scores")):
        assert list(own.read(scope, table)) == list(other.read(scope, table))
    learned, without_response = (
        {row["dialogue_id"]: sum(row["weights"]) for row in store.read("t0", "examples")}
        for store in (own, other)
    )
    # Nothing is left to learn of a dialogue whose questions were all cut off.
    ended = {
        row["id"]
        for row in own.read("t0", "dialogues")
        if any(turn["question_stop"] == "stop" for turn in row["turns"])
    }
    assert without_response.keys() == learned.keys() & ended != set()
    for dialogue, weight in without_response.items():
        assert learned[dialogue] > weight, "own_response adds its response"
    for store in (own, other):
        assert {row["policy_version"] for row in store.read("eval-m1", "dialogues")} == {1}
        assert {row["policy_version"] for row in store.read("t0", "dialogues")} == {0}
    weak = RunStore(root / "own_response" / "evaluations" / "weaker_roleplayer")
    values = json.loads((weak.root / "eval.json").read_text())
    assert values["about"]["roleplayer"]["grounding"] == "persona"
    assert values["about"]["trained_with_roleplayer"]["grounding"] == "facts"
