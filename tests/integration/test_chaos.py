"""`stargate bench chaos`, short: a few kills at random moments; the long form has thirty."""

import json
from pathlib import Path

import pytest

from tests.integration.run_process import Command

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    command = Command(
        *("bench", "chaos", "--kills", "3", "--gap", "3", "--kinds", "scorer,roleplayer,trainer"),
        *("--iterations", "1", "--tasks", "2", "--personas", "2", "--dialogues", "4"),
        *("--set", "data.test={tasks: 1, personas: 2}", "--set", "evaluation.num_turns=2"),
        *("--set", "rollout.max_concurrent_dialogues=2", "--json", str(file)),
    )
    output = command.finish()
    assert command.process.returncode == 0, output
    assert command.left_over() == []
    figures = json.loads(file.read_text())["figures"]
    assert (figures["lost"], figures["duplicated"]) == (0, 0)
    assert figures["selection_consistent"] is True
    assert figures["kills"] == 3
    assert figures["num_dialogues"] == 16
    assert set(figures["kills_by_kind"]) == {"scorer", "roleplayer", "trainer"}
    assert figures["longest_recovery_s"] > 0
