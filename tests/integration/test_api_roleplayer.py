"""`stargate run` with a Roleplayer behind an API: real HTTP, a real Questioner, no other engine.

The driver is killed in the middle and the run resumed. One dialogue's call fails for good.
"""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from stargate.config.run import DataConfig, SplitLimit
from stargate.data.dataset import load_dataset
from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from stargate.seeds import derive_seed
from stargate.types import Dialogue, StopReason
from tests.fakes.misbehaving_server import Behaviour, MisbehavingServer, Seen, answer_to
from tests.integration.run_process import Command, Run

pytestmark = [pytest.mark.integration, pytest.mark.engines]

AT_ONCE = 2


def roleplayer(url: str) -> str:
    """The override that makes it an API."""
    oracle = {
        "type": "openai",
        "base_url": url,
        "model": "m",
        "api_key_env": None,
        "retry": {"max_attempts": 2, "first_backoff_s": 0.01},
        "cost": {"prices": {"m": {"input_per_million": 1, "output_per_million": 2}}, "max_cost": 1},
    }
    sampling = {"max_new_tokens": 24, "temperature": None}
    return f"roleplayer={json.dumps({'type': 'api', 'oracle': oracle, 'sampling': sampling})}"


def seeds_of(dialogue: Dialogue) -> list[int]:
    """Of the requests for its answers."""
    return [derive_seed(dialogue.seed, "a", number) for number in range(dialogue.num_turns)]


def dialogues(root: Path, scope: str) -> dict[str, Dialogue]:
    return {row["id"]: dialogue_from_row(row) for row in RunStore(root).read(scope, "dialogues")}


def test_a_run_with_an_api_is_killed_and_goes_on(tmp_path: Path) -> None:
    data = load_dataset(DataConfig())
    pair = data.pairs("A", SplitLimit(tasks=2, personas=2))[0]
    lost = f"t0/{pair.id}/1"
    failing = derive_seed(derive_seed(0, "t0", pair.id, 1), "a", 0)

    def behave(seen: Seen) -> Behaviour:
        return Behaviour.ERROR_500 if seen.body["seed"] == failing else Behaviour.OK

    with MisbehavingServer(behave) as server:
        run = Run(tmp_path, f"rollout.max_concurrent_dialogues={AT_ONCE}", roleplayer(server.url))
        run.wait(lambda: list(tmp_path.glob("*/t0/dialogues/part-*.parquet")))
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        assert run.left_over(seconds=120.0) == []
        kept = {scope: dialogues(run.dir, scope) for scope in ("eval-m0", "t0")}
        assert kept["eval-m0"] and kept["t0"]
        second = Command("resume", str(run.dir))
        output = second.finish()
        assert second.process.returncode == 0, output
        asked = Counter(seen.body["seed"] for seen in server.seen)
        answered = server.log.answered.total()
        bodies = [seen.body for seen in server.seen]

    # What is on disk is neither played nor paid again, and stays as it is.
    found = {scope: dialogues(run.dir, scope) for scope in ("eval-m0", "t0", "eval-m1")}
    for scope, finished in kept.items():
        assert finished.items() <= found[scope].items()
        times = 1 if scope == "t0" else 2  # m_0 and m_1 meet the same seeds
        for dialogue in finished.values():
            assert [asked[seed] for seed in seeds_of(dialogue)] == [times] * dialogue.num_turns

    # The call that fails for good drops its dialogue alone.
    assert len(found["t0"]) == 7 and lost not in found["t0"]
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["dropped"] == {"answer_failed": 1}
    assert "last: HTTP 500: oops" in output and "dropped records: 1 answer_failed" in output

    # The same records, but for ids that nobody knows.
    for dialogue in found["t0"].values():
        for turn in dialogue.turns:
            # The first question stands behind the persona.
            assert turn.answer.startswith(answer_to("")) and turn.answer.endswith(turn.question)
            assert (turn.answer_ids, turn.answer_stop) == (None, StopReason.STOP)
            assert turn.question_ids
    assert all("temperature" not in body and body["max_tokens"] == 24 for body in bodies)

    # The meter is that of both sittings; what was in flight at the kill may have been paid.
    cost = summary["roleplayer_cost"]
    assert cost["calls"] + cost["lost_calls"] - AT_ONCE <= answered
    assert answered <= cost["calls"] + cost["lost_calls"]
    assert cost["money"] == pytest.approx(cost["calls"] * 0.00014)
    line = f"Roleplayer's API: {cost['calls']} calls"
    assert line in output
    report = Command("report", str(run.dir), "--text")
    assert f"the {line}" in report.finish()

    # No engine but the Questioner's.
    logs = {path.name for path in (run.dir / "logs").iterdir()}
    assert "questioner-0.log" in logs and not any("roleplayer" in name for name in logs)
    assert second.left_over() == []
