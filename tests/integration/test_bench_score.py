"""`stargate bench score`, small: it runs, says what it should, and its sides do the same work."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stargate.benchmarks.score_work import (
    Work,
    load_work,
    num_tokens,
    num_unique,
    stretches,
    with_golds,
)
from stargate.errors import DataError
from stargate.resources.models import resolve_model

pytestmark = [pytest.mark.integration, pytest.mark.engines]


@pytest.fixture(scope="module")
def work() -> Work:
    return load_work(resolve_model("embedded"), 2, 3, False)


def test_the_work_is_recorded_dialogues_with_real_golds(work: Work) -> None:
    assert [len(requests) for requests in work.played] == [4, 4]
    assert [len(requests) for requests in work.long] == [1, 1]
    for requests in (*work.played, *work.long):
        assert all(len(request.golds) == 3 for request in requests)
        assert all(100 < len(gold) < 200 for request in requests for gold in request.golds)
    assert all(130 < len(r.context_ids) < 260 for requests in work.played for r in requests)
    assert all(400 < len(requests[0].context_ids) < 800 for requests in work.long)


def test_both_sides_of_vs_forward_compute_the_same_tokens(work: Work) -> None:
    for pairs in (with_golds(work.played, 1), work.played, work.long):
        computed = stretches(pairs)
        assert sum(len(one.ids) for one in computed) == num_unique(pairs) < num_tokens(pairs)
    single = with_golds(work.played, 1)
    golds = sum(len(gold) for requests in single for r in requests for gold in r.golds)
    assert sum(one.num_places for one in stretches(single)) == golds


def test_more_than_there_is_is_refused() -> None:
    folder = resolve_model("embedded")
    with pytest.raises(DataError, match=r"--pairs must be in 1\.\.24, got 25"):
        load_work(folder, 25, 1, False)
    with pytest.raises(DataError, match=r"--golds must be in 1\.\.8, got 9"):
        load_work(folder, 1, 9, False)


def test_the_command_runs_small(tmp_path: Path) -> None:
    file = tmp_path / "score.json"
    command = [sys.executable, "-m", "stargate.launch.cli", "bench", "score", "--device", "cpu"]
    options = ["--pairs", "1", "--golds", "2", "--rounds", "1", "--json", str(file)]
    done = subprocess.run(command + options, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(file.read_text(encoding="utf-8"))
    assert set(result["ratios"]) == {"vs_prompt_logprobs", "vs_forward", "golds8_vs_1"}
    assert all(value > 0 for value in result["ratios"].values())
    figures = result["figures"]
    assert figures["dialogues"] == 4
    assert figures["unique_tokens"] < figures["tokens"]
    differences = figures["largest_differences_nats_per_token"]
    assert 0.0 < differences["several_golds_from_one"] <= 0.02
    assert 0.0 < differences["scorer_from_float32"] <= 0.02
    assert differences["prompt_logprobs_from_float32"] <= 0.1
