"""What the report reads from a run directory."""

import json
from pathlib import Path

import pytest

from stargate.errors import DataError
from stargate.evaluation.statistics import Measure
from stargate.report.data import load_report
from stargate.report.dialogues import keep_whole_pairs
from stargate.report.findings import answer
from stargate.report.records import DialogueView, ReportData
from stargate.report.text import render_text
from tests.fakes.report_run import FACTS, MARKUP, PERSONAS, build_halted_run


def dialogue(data: ReportData, key: str, source: str) -> DialogueView:
    [found] = [d for d in data.dialogues if d.id == key and d.source == source]
    return found


def test_a_run_is_read_whole(data: ReportData) -> None:
    assert (data.name, data.status, data.finished) == ("tiny-20260101-000000", "finished", True)
    assert data.notes == ()
    assert {evaluation.source: evaluation.checkpoints for evaluation in data.evaluations} == {
        "test": ("m0", "m1", "m2"),
        "evaluations/strict": ("m0", "m2"),
    }
    assert [entry.losses for entry in data.iterations] == [(3.0, 2.5), (2.0, 1.5)]
    assert [entry.validation_loss for entry in data.iterations] == [None, 2.25]
    assert (data.stages["rollout"], data.throughput.generated_tokens_per_s) == (200.0, 6.0)
    assert (data.drops.run, data.drops.data) == ({"prompt_too_long": 2}, {"empty_gold": 1})
    assert data.drops.total == 3
    assert len(data.dialogues) == 3 * 12 + 2 * 8 + 2 * 12
    assert data.num_dialogues_left_out == 0


def test_an_evaluation_keeps_its_measures_changes_and_judge(data: ReportData) -> None:
    own = data.main
    assert own is not None and own.about is not None
    value = own.measure("m1", "matched_minus_shuffled")
    assert value == Measure(2.25, 1.75, 2.75, 0.25, 8, 2, 2)
    change = own.change("m2", "facts_per_dialogue")
    assert change is not None and change.mean == 1.5
    assert own.measure("m0", "win_rate") is None
    assert own.win_rates["m2"]["win_rate_details"]["num_unparsable_verdicts"] == 1
    assert own.judge is not None and not own.judge.fit
    assert [(c.name, c.passed) for c in own.judge.criteria] == [
        ("self_rate", True),
        ("gold_rate", False),
        ("order_consistency", False),
    ]
    assert own.about.trained_with_roleplayer == own.about.roleplayer
    other = data.evaluations[1].about
    assert other is not None and other.trained_with_roleplayer != other.roleplayer


def test_a_test_dialogue_has_its_controls_and_gains(data: ReportData) -> None:
    found = dialogue(data, "eval-m2/test-task0:test-a/0", "test")
    assert (found.gold_logprob, found.shuffled, found.no_dialogue) == (-96.0, -99.0, -104.0)
    assert found.matched_minus_shuffled == 3.0
    assert [(turn.gain, turn.elicited) for turn in found.turns] == [(5.0, (0,)), (3.0, (1,))]
    assert found.turns[1].answer == MARKUP
    assert [response.version for response in found.responses] == [0, 2]
    assert found.chosen is None


def test_turns_without_a_score_between_them_have_no_gain(data: ReportData) -> None:
    found = dialogue(data, "eval-m2/test-task0:test-a/1", "test")
    assert [turn.gain for turn in found.turns] == [None, None]
    assert (found.gold_logprob, found.no_dialogue) == (-95.0, -104.0)


def test_needless_dialogues_are_there_without_scores(data: ReportData) -> None:
    found = dialogue(data, "eval-m1/capital:test-b/0", "test")
    assert (found.gold_logprob, found.shuffled, found.no_dialogue) == (None, None, None)
    assert not found.pair.task.needs_question


def test_a_training_dialogue_has_its_scores_and_says_whether_it_was_chosen(
    data: ReportData,
) -> None:
    chosen = dialogue(data, "t1/b-task0:b-b/1", "train")
    assert (chosen.gold_logprob, chosen.score) == (-48.0, -48.0)
    assert chosen.chosen is True
    assert [response.text for response in chosen.responses] == ["Trained response: rice & beans."]
    assert dialogue(data, "t1/b-task0:b-b/0", "train").chosen is False
    selection = data.selections[0]
    assert (selection.pair_id, selection.chosen) == ("a-task0:a-a", "t0/a-task0:a-a/1")
    assert selection.scores == (-50.0, -48.0, -49.0)
    assert data.selections[-1].other_gold_logprobs == (-60.0, -50.0, -57.0)


def test_texts_come_from_the_dataset(data: ReportData) -> None:
    pair = data.pairs["test"]["test-task1:test-b"]
    persona = pair.persona
    assert persona.name == PERSONAS[1]
    assert persona.facts == FACTS
    assert persona.text == f"{PERSONAS[1]} of split test. {' '.join(FACTS)}"
    assert pair.gold == f"Gold 1 for <em>{PERSONAS[1]}</em>: no onions."
    assert pair.gold_facts == (0, 1)


def test_without_the_dataset_facts_are_numbers_and_a_note_says_so(
    copy: Path, run_dir: Path
) -> None:
    for config in (copy / "config.yaml", copy / "evaluations/strict/config.yaml"):
        text = config.read_text().replace(str(run_dir.parent / "data"), "no/such/folder")
        config.write_text(text)
    data = load_report(copy)
    found = dialogue(data, "eval-m2/test-task0:test-a/0", "test")
    assert (found.turns[0].elicited, found.pair.persona.facts) == ((0,), ())
    trained = data.pairs["train"]["a-task0:a-a"]
    assert (trained.persona.text, trained.gold) == ("", None)
    [note] = data.notes
    assert "no/such/folder: no such dataset folder" in note


def test_facts_without_grounding_are_read_from_the_answers(copy: Path) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("type: facts", "type: persona", 1))
    of_facts = ("min_similarity", "questions_per_turn", "voice", "keep_similarity")
    lines = config.read_text().splitlines()
    config.write_text("\n".join(n for n in lines if n.strip().split(":")[0] not in of_facts))
    data = load_report(copy)
    # t0 k = 2 recorded fact 1 at turn 2, but the answer "No onions." does not state it in words.
    assert dialogue(data, "t0/a-task0:a-a/0", "train").turns[0].elicited == (0,)
    assert dialogue(data, "t0/a-task0:a-a/2", "train").turns[1].elicited == ()


def test_a_halted_run_says_what_is_missing(tmp_path: Path) -> None:
    data = load_report(build_halted_run(tmp_path))
    assert (data.status, data.finished, data.throughput.seconds) == ("not finished", False, None)
    assert [evaluation.checkpoints for evaluation in data.evaluations] == [("m0",)]
    assert len(data.dialogues) == 12 + 1
    assert dialogue(data, "t0/a-task0:a-a/0", "train").gold_logprob is None
    assert len(data.notes) == 2
    assert "no eval.json" in data.notes[0] and "no summary.json" in data.notes[1]
    found = answer(data, data.main)
    assert found.headline.startswith("Nothing was measured")
    assert found.caveats[0].level == "bad" and "0 of 2 iterations" in found.caveats[0].text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "summary.json: not valid JSON"),
        ("summary.json", "[]", "summary.json: expected an object, got list"),
        ("eval.json", '{"m0": {"gold_logprob": {"mean": 1}}}', "eval.json: not what a run writes"),
        (
            "metrics.jsonl",
            '{"event": "iteration"}\n',
            "metrics.jsonl: not what a run writes: it",
        ),
        ("t0/scores.parquet", "PAR?", "scores.parquet: can't be read"),
    ],
)
def test_a_broken_file_is_one_clear_error(
    copy: Path, name: str, content: str, message: str
) -> None:
    (copy / name).write_text(content)
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        load_report(copy)


def test_what_is_not_a_run_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory: it has no config"):
        load_report(tmp_path)
    with pytest.raises(DataError, match="no such run directory"):
        load_report(tmp_path / "nothing")


def test_a_line_that_a_killed_process_was_writing_is_not_counted(copy: Path) -> None:
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"event": "iterat')
    assert [entry.number for entry in load_report(copy).iterations] == [0, 1]


def test_too_many_training_dialogues_are_left_out_in_whole_pairs(run_dir: Path) -> None:
    data = load_report(run_dir, max_dialogues=52 + 14)
    kept = [d for d in data.dialogues if d.source == "train"]
    assert (len(kept), data.num_dialogues_left_out) == (12, 12)
    assert {(d.version, d.pair.id) for d in kept} == {
        (0, "a-task0:a-a"),
        (0, "a-task1:a-a"),
        (1, "b-task0:b-a"),
        (1, "b-task1:b-a"),
    }
    assert "leaves out 12 training dialogues" in data.notes[0]
    assert len(data.selections) == 8  # selections are all there


def test_nothing_is_left_out_when_there_is_room() -> None:
    rows = {0: [{"pair_id": "a"}, {"pair_id": "b"}], 1: [{"pair_id": "c"}]}
    assert keep_whole_pairs(rows, 3) == (rows, 0)


def test_what_an_evaluation_dropped_is_in_the_report(copy: Path) -> None:
    before = load_report(copy).drops
    drops = {"dropped": {"prompt_too_long": 2}, "examples": {"prompt_too_long": ["workout:ana"]}}
    (copy / "evaluations" / "strict" / "eval_dropped.json").write_text(json.dumps(drops))
    after = load_report(copy).drops
    assert after.total == before.total + 2
    assert after.run["prompt_too_long (evaluation strict)"] == 2
    assert after.examples["prompt_too_long (evaluation strict)"] == ("workout:ana",)


def test_the_engines_gap_stands_beside_the_losses(copy: Path) -> None:
    metrics = copy / "metrics.jsonl"
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    for event in events:
        if event.get("iteration") == 1:
            event |= {"engine_gap_mean": [0.01, 0.03], "engine_gap_max": [0.5, 0.25]}
    metrics.write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")
    [line] = [line for line in render_text(load_report(copy)).splitlines() if "(m2)" in line]
    assert "engine's log-probs off by 0.0200 nats (at most 0.500)" in line
