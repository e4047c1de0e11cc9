"""What an evaluation of a real run says, against naive arithmetic; `stargate eval` and `report`."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from stargate.config.run import DataConfig
from stargate.data.dataset import load_dataset
from stargate.evaluation.controls import ControlScore
from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from stargate.resources.models import resolve_model
from stargate.types import Dialogue, Pair
from tests.integration.run_process import Command, Run

pytestmark = [pytest.mark.integration, pytest.mark.engines]

CONTROLS = {
    "matched",
    "other_gold",
    "shuffled",
    "no_dialogue",
    "persona_given",
    "persona_and_dialogue",
    "after_turn",
}


def messages(pair: Pair, entry: ControlScore, dialogues: dict[str, Dialogue]) -> list[Any]:
    """The conversation of `pair` before the gold, written down without our code."""
    opening = f"My name is {pair.persona.name}.\n\n{pair.task.text}"
    if entry.control.startswith("persona"):
        opening += f"\n\nHere is some background about me: {pair.persona.text}"
    said = [{"role": "user", "content": opening}]
    name = entry.other_dialogue_id or entry.dialogue_id
    turns = dialogues[name].turns[: entry.num_turns] if name else ()
    for number, turn in enumerate(turns, start=1):
        last = f"\n\n{pair.task.text}" if number == len(turns) else ""
        said.append({"role": "assistant", "content": turn.question})
        said.append({"role": "user", "content": turn.answer + last})
    return said


def test_controls_equal_a_naive_float32_pass(finished: tuple[Run, str]) -> None:
    """Every kind of control: the chat template over plain texts, one sequence at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, _ = finished
    folder = resolve_model("embedded")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    store = RunStore(run.dir)
    pairs = {pair.id: pair for pair in load_dataset(DataConfig()).pairs("test")}
    dialogues = {d.id: d for d in map(dialogue_from_row, store.read("eval-m1", "dialogues"))}
    entries = [ControlScore(**row) for row in store.read("eval-m1", "controls")]
    assert {entry.control for entry in entries} == CONTROLS
    compared = 0
    for entry in entries:
        pair = pairs[entry.pair_id]
        other_gold = entry.dialogue_id if entry.control == "other_gold" else None
        named = re.search(rf"\b({'|'.join(pair.persona.name.split())})\b", str(pair.gold), re.I)
        # Another's gold is scored where it would be said: to the dialogue's persona, unless it
        # calls its own by name.
        told = pairs[dialogues[other_gold].pair_id] if other_gold and not named else pair
        said = messages(told, entry, dialogues)
        context = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(
            [*said, {"role": "assistant", "content": pair.gold}], return_dict=False
        )
        # A question that ran into its limit has no end token, which the template would add.
        name = entry.other_dialogue_id or entry.dialogue_id
        turns = dialogues[name].turns if name else ()
        if any(turn.question_stop != "stop" for turn in turns):
            continue
        gold = whole[len(context) :][: entry.num_gold_tokens]
        with torch.no_grad():
            logits = model(torch.tensor([context + gold])).logits[0].log_softmax(-1)
        expected = sum(float(logits[len(context) + k - 1, t]) for k, t in enumerate(gold))
        assert abs(entry.gold_logprob - expected) / len(gold) < 0.05, entry
        compared += 1
    assert compared >= 4


def test_a_run_writes_eval_json_and_tensorboard(finished: tuple[Run, str]) -> None:
    run, _ = finished
    values = json.loads((run.dir / "eval.json").read_text())
    assert {"m0", "m1", "changes", "about"} == set(values)
    measure = values["m1"]["matched_minus_shuffled"]
    assert set(measure) >= {"mean", "ci_low", "ci_high", "n", "task_clusters", "persona_clusters"}
    assert (measure["n"], measure["task_clusters"], measure["persona_clusters"]) == (2, 1, 2)
    assert measure["ci_low"] is None  # one task: no interval can be given
    assert values["m1"]["needless_question_rate"]["n"] == 16  # 4 tasks x 2 personas x 2 turns
    store = RunStore(run.dir)
    summed = [
        row["gold_logprob"]
        for row in store.read("eval-m1", "controls")
        if row["control"] == "matched"
    ]
    assert values["m1"]["gold_logprob"]["mean"] == pytest.approx(sum(summed) / len(summed))
    assert list((run.dir / "tensorboard").glob("events.*"))


def test_another_roleplayer_and_a_judge_stand_beside_the_runs_own(
    finished: tuple[Run, str], tmp_path: Path
) -> None:
    run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run.dir, copy)
    command = Command(
        *("eval", str(copy), "--name", "held-out", "roleplayer.grounding={type: persona}"),
        *("roleplayer.style=[evasive, chatty]", "roleplayer.patience=1", "evaluation.turns=[3]"),
        *("evaluation.judge={max_pairs: 2, max_reply_tokens: 8}", "evaluation.num_dialogues=2"),
    )
    output = command.finish()
    assert command.process.returncode == 0, output
    assert command.left_over() == []
    values = json.loads((copy / "evaluations" / "held-out" / "eval.json").read_text())
    user, trained_with = values["about"]["roleplayer"], values["about"]["trained_with_roleplayer"]
    assert (user["grounding"], trained_with["grounding"]) == ("persona", "facts")
    assert (user["style"], user["patience"]) == (["evasive", "chatty"], 1)
    assert values["judge"]["fit"] is False
    assert "UNFIT" in output
    assert values["m1"]["win_rate"]["n"] == values["m1"]["win_rate_fixed_responder"]["n"] == 2
    store = RunStore(copy / "evaluations" / "held-out")
    played = [dialogue_from_row(row) for row in store.read("eval-m1", "dialogues")]
    assert {dialogue.policy_version for dialogue in played} == {1}
    # Its patience ended each dialogue before its K turns, and all of it was scored.
    assert {(len(dialogue.turns), dialogue.num_turns) for dialogue in played} == {(2, 3)}
    assert {dialogue.turns[1].answer for dialogue in played} == {"Just answer, please."}
    assert values["m1"]["gain_at_turn_2"]["n"] == values["m1"]["gain_at_turn_1"]["n"] == 2
    assert "gain_at_turn_3" not in values["m1"]
    responders = {row["responder_version"] for row in store.read("eval-m1", "responses")}
    assert responders == {0, 1}
    # The run's own evaluation is as it was.
    for name in ("eval.json", "eval-m1/dialogues.parquet"):
        assert (copy / name).read_bytes() == (run.dir / name).read_bytes()

    report = Command("report", str(copy))
    output = report.finish()
    assert report.process.returncode == 0, output
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "held-out" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_what_changes_the_measure_needs_a_name(finished: tuple[Run, str]) -> None:
    run, _ = finished
    command = Command("eval", str(run.dir), "data.test.tasks=3", "seed=5")
    output = command.finish()
    assert command.process.returncode == 2
    assert "data.test.tasks, seed changes what is measured: give this evaluation a --name" in output
    assert len(output.strip().splitlines()) == 1
