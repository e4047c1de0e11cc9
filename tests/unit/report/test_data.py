"""What the report reads from a run directory, and what it concludes from that."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stargate.errors import DataError
from stargate.evaluation.statistics import Measure
from stargate.report.breakdown import breakdown, compare_selections, selection_gains
from stargate.report.caveats import overlaps
from stargate.report.data import load_report
from stargate.report.dialogues import gains, keep_whole_pairs
from stargate.report.findings import answer
from stargate.report.records import DialogueView, ReportData
from stargate.report.wording import Numbers
from tests.fakes.report_run import FACTS, MARKUP, PERSONAS, build_halted_run, build_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def data(run_dir: Path) -> ReportData:
    return load_report(run_dir)


def dialogue(data: ReportData, key: str, source: str) -> DialogueView:
    [found] = [d for d in data.dialogues if d.id == key and d.source == source]
    return found


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def edited(copy: Path, change: Callable[[Any], object]) -> ReportData:
    """The run with its eval.json changed in place by `change`."""
    tree = json.loads((copy / "eval.json").read_text())
    change(tree)
    (copy / "eval.json").write_text(json.dumps(tree))
    return load_report(copy)


def test_a_run_is_read_whole(data: ReportData) -> None:
    assert (data.name, data.status, data.finished) == ("tiny-20260101-000000", "finished", True)
    assert data.notes == ()
    assert [evaluation.source for evaluation in data.evaluations] == ["test", "evaluations/strict"]
    assert [evaluation.checkpoints for evaluation in data.evaluations] == [
        ("m0", "m1", "m2"),
        ("m0", "m2"),
    ]
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
    assert [turn.gain for turn in found.turns] == [5.0, 3.0]
    assert [turn.elicited for turn in found.turns] == [(0,), (1,)]
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
    lines = [line for line in config.read_text().splitlines() if not _of_facts_grounding(line)]
    config.write_text("\n".join(lines))
    data = load_report(copy)
    # t0 k = 2 recorded fact 1 at turn 2, but the answer "No onions." does not state it in words.
    assert dialogue(data, "t0/a-task0:a-a/0", "train").turns[0].elicited == (0,)
    assert dialogue(data, "t0/a-task0:a-a/2", "train").turns[1].elicited == ()


def _of_facts_grounding(line: str) -> bool:
    keys = ("min_similarity", "max_facts_per_turn", "voice", "keep_similarity")
    return line.strip().split(":")[0] in keys


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
        ("metrics.jsonl", '{"event": "iteration"}\n', "metrics.jsonl:1: not a line of metrics"),
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


def test_gains_need_both_ends() -> None:
    assert gains({0: -10.0, 1: -8.0, 3: -4.0}, 3) == [2.0, None, None]
    assert gains({0: -10.0, 1: -8.0, 2: -9.0}, 2) == [2.0, -1.0]
    assert gains({}, 1) == [None]


def test_the_answer_comes_with_numbers_and_interval(data: ReportData) -> None:
    found = answer(data, data.main)
    assert found.headline == (
        "Yes, m2 beats m0: matched minus shuffled rose by 2.00 nats, from 1.25 to 3.25 "
        "(95 % interval of the change 1.50 to 2.50)."
    )
    levels = {sentence.text.split(" rose")[0][:22]: sentence.level for sentence in found.sentences}
    assert levels["Facts elicited per dia"] == "good"
    assert levels["The gold log-prob, whi"] == "even"  # its interval contains 0
    assert levels["The user's effort per "] == "plain"
    assert [sentence.text for sentence in found.origins] == [
        "Of the gold log-prob's +4.00 nats, +2.00 are about the person (matched minus shuffled) "
        "and +2.00 are form: they are there after another persona's dialogue too. The sum is not "
        "a clear rise, so read the parts as rough.",
        "At m2, turn 1 adds +5.00 nats (was +3.00, a clear rise); turn 2 adds +3.00 nats (was "
        "+1.00, a clear rise).",
    ]


@pytest.mark.parametrize(
    ("mean", "low", "high", "words"),
    [
        (0.5, -0.5, 1.5, "No clear change: matched minus shuffled changed by +0.5"),
        (-1.0, -1.5, -0.5, "No, m2 is worse than m0: matched minus shuffled fell by 1.00"),
        (0.5, None, None, "Not known: matched minus shuffled changed by +0.50 nats"),
    ],
)
def test_the_verdict_follows_the_interval(
    copy: Path, mean: float, low: float | None, high: float | None, words: str
) -> None:
    def change(tree: dict[str, Any]) -> None:
        entry = tree["changes"]["m2"]["matched_minus_shuffled"]
        entry.update(mean=mean, ci_low=low, ci_high=high)

    data = edited(copy, change)
    found = answer(data, data.main)
    assert found.headline[: len(words)] == words


def test_one_checkpoint_is_not_compared(copy: Path) -> None:
    def only_m0(tree: dict[str, Any]) -> None:
        del tree["m1"], tree["m2"]
        tree["changes"] = {}

    data = edited(copy, only_m0)
    found = answer(data, data.main)
    assert found.headline == "Only m0 was measured: there is nothing to compare it with."
    assert data.main is not None
    rows = breakdown(data, data.main, "persona")
    assert [(row.id, row.matched_minus_shuffled.after) for row in rows] == [
        ("test-b", None),
        ("test-a", None),
    ]


def test_an_earlier_checkpoint_that_did_better_is_named(copy: Path) -> None:
    def raise_m1(tree: dict[str, Any]) -> None:
        tree["m1"]["matched_minus_shuffled"]["mean"] = 5.0

    data = edited(copy, raise_m1)
    texts = [sentence.text for sentence in answer(data, data.main).sentences]
    assert any(
        text.startswith("m1 had a higher mean") and "5.00 against 3.25" in text for text in texts
    )


def test_a_fit_judge_is_quoted_and_an_unfit_one_is_a_caveat(copy: Path, data: ReportData) -> None:
    found = answer(data, data.main)
    assert not any("judge prefers" in sentence.text for sentence in found.sentences)
    assert found.caveats[0].text == (
        "Win rates (m2 over m0: 60 %) mean nothing, because the judge judge-135m is unfit: it "
        "failed its qualification (gold_rate: must be >= 0.6, got 0.50 (n = 4))."
    )
    data = edited(copy, lambda tree: tree["judge"].update(fit=True))
    found = answer(data, data.main)
    assert found.sentences[-1].text == (
        "The judge prefers m2 to m0 in 60 % of comparisons (95 % interval 40 to 80 %, which "
        "contains 50 %)."
    )
    assert not any("unfit" in caveat.text for caveat in found.caveats)


def test_caveats_name_what_weakens_the_result(data: ReportData) -> None:
    texts = " ".join(caveat.text for caveat in answer(data, data.main).caveats)
    for words in (
        "3 records were dropped: 1 empty_gold, 2 prompt_too_long.",
        "2 tasks x 2 personas: too few",
        "leaks at m2: 5 % of answers recite the profile.",
        "Repeated questions went up by 10.0 percentage points (95 % interval 8.0 to 12.0).",
        "Questions on tasks that need none went up by 50.0 percentage points",
        "nearly the same as ones that were trained on",
        "is the one of the training (the-run's-roleplayer)",
        "one seed (0)",
    ):
        assert words in texts
    other = " ".join(caveat.text for caveat in answer(data, data.evaluations[1]).caveats)
    assert "(another-roleplayer, prompts paper, grounding facts) is not the one" in other


def test_caveats_that_do_not_apply_are_not_there(copy: Path) -> None:
    def clean(tree: dict[str, Any]) -> None:
        for name in ("repeated_question_rate", "needless_question_rate"):
            tree["changes"]["m2"][name].update(mean=0.0, ci_low=-0.1, ci_high=0.1)
        tree["m2"]["recital_rate"]["mean"] = 0.0
        for entry in tree["m2"].values():
            entry.update(task_clusters=50, persona_clusters=10)

    data = edited(copy, clean)
    texts = " ".join(caveat.text for caveat in answer(data, data.main).caveats)
    for words in ("Repeated", "need none", "leaks", "too few", "rough"):
        assert words not in texts
    assert "50 tasks x 10 personas" in texts


def test_overlaps_are_between_training_and_test_only(data: ReportData) -> None:
    assert data.main is not None
    found = overlaps(data, data.main)
    assert {(entry.kind, entry.test_id) for entry in found} == {
        ("tasks", "test-task0"),
        ("tasks", "test-task1"),
        ("personas", "test-a"),
        ("personas", "test-b"),
    }
    assert all(entry.train_id[:2] in ("a-", "b-") for entry in found)
    alone = replace(data, pairs={"test": data.pairs["test"]})
    assert overlaps(alone, data.main) == ()


def test_breakdown_by_persona_is_over_pairs_and_leaves_needless_tasks_out(
    data: ReportData,
) -> None:
    assert data.main is not None
    rows = breakdown(data, data.main, "persona")
    shown = [
        (row.label, row.num_pairs, row.matched_minus_shuffled.before, row.facts.before)
        for row in rows
    ]
    assert shown == [(PERSONAS[0], 2, 1.0, 1.0), (PERSONAS[1], 2, 1.5, 0.0)]
    assert [row.matched_minus_shuffled.change for row in rows] == [2.0, 2.0]
    assert [row.facts.change for row in rows] == [1.0, 2.0]
    assert [row.id for row in breakdown(data, data.main, "task")] == ["test-task0", "test-task1"]


def test_selections_are_compared_on_the_same_rollouts(data: ReportData) -> None:
    found = compare_selections(data)
    assert found is not None
    assert (found.num_pairs, found.agreement) == (8, 0.5)
    gold, contrastive, mean = found.choices
    assert (gold.rule, gold.gold_logprob, gold.contrast, gold.facts) == ("gold", -48.0, 7.0, 0.0)
    # j = 0: k = 1 (no fact); j = 1: k = 0 (fact 0, one of the gold's two).
    assert (contrastive.gold_logprob, contrastive.contrast) == (-49.0, 11.0)
    assert (contrastive.facts, contrastive.coverage) == (0.5, 0.25)
    assert (mean.facts, mean.question_rate) == (pytest.approx(2 / 3), 1.0)
    assert [(gain.iteration, gain.num_pairs, gain.gain) for gain in selection_gains(data)] == [
        (0, 4, 1.0),
        (1, 4, 1.0),
    ]


def test_without_other_golds_there_is_no_comparison(data: ReportData) -> None:
    selections = tuple(replace(s, other_gold_logprobs=(None, None, None)) for s in data.selections)
    assert compare_selections(replace(data, selections=selections)) is None


def test_numbers_are_as_precise_as_their_interval() -> None:
    def measure(mean: float, half: float | None) -> Measure:
        low, high = (None, None) if half is None else (mean - half, mean + half)
        return Measure(mean, low, high, None, 4, 2, 2)

    assert Numbers.of(measure(1.0, 0.5), "nats").value(1.23456) == "1.23"
    assert Numbers.of(measure(1.0, 12.0), "nats").value(-1234.5) == "\u22121,234"
    assert Numbers.of(measure(0.01, 0.004), "nats").value(0.01) == "0.0100"
    assert Numbers.of(measure(0.5, 0.125), "share").value(0.5) == "50 %"
    assert Numbers.of(measure(0.5, None), "share").shift(0.25) == "25 percentage points"
    assert Numbers.of(measure(1.0, None), "nats").shift(0.5, " nats", signed=True) == "+0.50 nats"


def test_what_an_evaluation_dropped_is_in_the_report(copy: Path) -> None:
    before = load_report(copy).drops
    drops = {"dropped": {"prompt_too_long": 2}, "examples": {"prompt_too_long": ["workout:ana"]}}
    (copy / "evaluations" / "strict" / "eval_dropped.json").write_text(json.dumps(drops))
    after = load_report(copy).drops
    assert after.total == before.total + 2
    assert after.run["prompt_too_long (evaluation strict)"] == 2
    assert after.examples["prompt_too_long (evaluation strict)"] == ("workout:ana",)
