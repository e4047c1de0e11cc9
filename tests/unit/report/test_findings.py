"""What the report concludes from what it read."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stargate.evaluation.statistics import Measure
from stargate.report.breakdown import breakdown, compare_selections, selection_gains
from stargate.report.caveats import overlaps
from stargate.report.data import load_report
from stargate.report.findings import Answer, answer
from stargate.report.records import ReportData
from stargate.report.wording import Numbers, Sentence
from tests.fakes.report_run import PERSONAS


def texts(sentences: Iterable[Sentence]) -> list[str]:
    return [sentence.text for sentence in sentences]


def edited(copy: Path, change: Callable[[Any], object]) -> tuple[ReportData, Answer]:
    """The run with its eval.json changed in place by `change`, and its answer."""
    tree = json.loads((copy / "eval.json").read_text())
    change(tree)
    (copy / "eval.json").write_text(json.dumps(tree))
    data = load_report(copy)
    return data, answer(data, data.main)


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
    assert texts(found.origins) == [
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

    _, found = edited(copy, change)
    assert found.headline[: len(words)] == words


def test_one_checkpoint_is_not_compared(copy: Path) -> None:
    def only_m0(tree: dict[str, Any]) -> None:
        del tree["m1"], tree["m2"]
        tree["changes"] = {}

    data, found = edited(copy, only_m0)
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

    _, found = edited(copy, raise_m1)
    [text] = (text for text in texts(found.sentences) if text.startswith("m1 had a higher mean"))
    assert "5.00 against 3.25" in text


def test_a_fit_judge_is_quoted_and_an_unfit_one_is_a_caveat(copy: Path, data: ReportData) -> None:
    found = answer(data, data.main)
    assert not any("judge prefers" in sentence.text for sentence in found.sentences)
    assert found.caveats[0].text == (
        "Win rates (m2 over m0: 60 %) mean nothing, because the judge judge-135m is unfit: it "
        "failed its qualification (gold_rate: must be >= 0.6, got 0.50 (n = 4))."
    )
    _, found = edited(copy, lambda tree: tree["judge"].update(fit=True))
    assert found.sentences[-1].text == (
        "The judge prefers m2 to m0 in 60 % of comparisons (95 % interval 40 to 80 %, which "
        "contains 50 %)."
    )
    assert not any("unfit" in caveat.text for caveat in found.caveats)


def test_caveats_name_what_weakens_the_result(data: ReportData) -> None:
    said = " ".join(texts(answer(data, data.main).caveats))
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
        assert words in said
    other = " ".join(texts(answer(data, data.evaluations[1]).caveats))
    assert "(another-roleplayer, prompts paper, grounding facts) is not the one" in other


def test_caveats_that_do_not_apply_are_not_there(copy: Path) -> None:
    def clean(tree: dict[str, Any]) -> None:
        for name in ("repeated_question_rate", "needless_question_rate"):
            tree["changes"]["m2"][name].update(mean=0.0, ci_low=-0.1, ci_high=0.1)
        tree["m2"]["recital_rate"]["mean"] = 0.0
        for entry in tree["m2"].values():
            entry.update(task_clusters=50, persona_clusters=10)

    _, found = edited(copy, clean)
    said = " ".join(texts(found.caveats))
    for words in ("Repeated", "need none", "leaks", "too few", "rough"):
        assert words not in said
    assert "50 tasks x 10 personas" in said


def test_a_caveat_says_that_intervals_are_by_task_where_persons_belong_to_tasks(copy: Path) -> None:
    def nest(tree: dict[str, Any]) -> None:
        for entry in tree["m2"].values():
            entry.update(task_clusters=50, persona_clusters=2, nested=True)

    _, found = edited(copy, nest)
    said = "The intervals rest on 50 tasks (each person belongs to one task), resampled by task."
    assert said in [caveat.text for caveat in found.caveats]


def test_overlaps_are_between_training_and_test_only(data: ReportData) -> None:
    assert data.main is not None
    found = overlaps(data, data.main)
    assert {(entry.kind, entry.test_id) for entry in found} == {
        *(("tasks", "test-task0"), ("tasks", "test-task1")),
        *(("personas", "test-a"), ("personas", "test-b")),
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
