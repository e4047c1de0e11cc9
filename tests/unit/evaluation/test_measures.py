"""Every number is worked out here by hand, from the tables of tests/fakes/measured.py."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stargate.errors import DataError
from stargate.evaluation.asking import CONSTANT_POLICIES
from stargate.evaluation.checkpoint_records import (
    CheckpointRecords,
    comparisons_from_rows,
    read_checkpoint,
)
from stargate.evaluation.elicitation import observe_elicitation
from stargate.evaluation.measures import (
    changes,
    evaluation_json,
    judge_qualification,
    measure_checkpoint,
    win_rates,
    write_evaluation,
)
from stargate.evaluation.statistics import Observation
from stargate.evaluation.verdicts import Verdict
from stargate.evaluation.win_rate import JudgedComparison
from stargate.records.schemas import Row
from stargate.records.store import RunStore
from tests.fakes.measured import (
    ABOUT,
    DIALOGUE_MEASURES,
    FIXED,
    GOLD_MEASURES,
    GROUNDED,
    MEASURE_KEYS,
    OWN,
    PAIRS,
    QUICK,
    TEA,
    TRIALS,
    checkpoint,
    dialogue,
    scored,
    seen,
    stored,
    tables,
    with_verdicts,
    words,
)
from tests.fakes.scripted import make_turn


@pytest.mark.parametrize(
    ("name", "total", "n"),
    [
        ("gold_logprob", -100 - 90 - 80 - 84 - 60 - 50 - 40 - 44, 8),
        ("gold_logprob_per_token", -10 - 9 - 8 - 8.4 - 3 - 2.5 - 2 - 2.2, 8),
        ("gold_logprob_best", -90 - 80 - 50 - 40, 4),
        ("no_dialogue", -110 - 90 - 60 - 50, 4),
        ("persona_given", -70 - 60 - 50 - 30, 4),
        ("persona_and_dialogue", -65 - 55 - 45 - 25, 4),
        ("shuffled", -110 - 92 - 90 - 86 - 70 - 52 - 50, 7),
        ("matched_minus_shuffled", 10 + 2 + 10 + 2 + 10 + 2 + 10, 7),
        ("matched_minus_shuffled_per_token", 1 + 0.2 + 1 + 0.2 + 0.5 + 0.1 + 0.5, 7),
        ("matched_minus_no_dialogue", 10 + 20 + 10 + 6 + 0 + 10 + 10 + 6, 8),
        ("gain_at_turn_1", 4 + 6 + 2 + 1, 4),
        ("gain_at_turn_2", 6 + 4 - 2 + 9, 4),
        # Of two turns each: one and two questions.
        ("question_rate", 4 * 1 + 4 * 2, 16),
        ("facts_per_dialogue", 8, 8),
        # Only task a's golds name a fact, and only the first dialogues bring it out.
        ("fact_coverage", 2, 4),
        ("facts_at_turn_1", 4, 8),
        ("facts_at_turn_2", 4, 8),
        # Questions of 4 + 3 words, answers of 4 + 1; and 4 + 2, 2 + 5.
        ("tokens_per_dialogue", 4 * 12 + 4 * 13, 8),
    ],
)
def test_means_of_m0(name: str, total: float, n: int) -> None:
    got = measure_checkpoint(seen(checkpoint(0)), {}, QUICK)[name]
    assert got.mean == pytest.approx(total / n)
    assert (got.n, got.task_clusters) == (n, 1 if name == "fact_coverage" else 2)
    assert got.persona_clusters == 2


def test_an_observation_keeps_its_task_and_persona() -> None:
    assert seen(checkpoint(0))["gold_logprob_best"] == [
        Observation("a", "p", -90.0),
        Observation("a", "q", -80.0),
        Observation("b", "p", -50.0),
        Observation("b", "q", -40.0),
    ]


def test_elicitation_is_measured_as_elicitation_does_it() -> None:
    records = checkpoint(0)
    played = [(PAIRS[entry.pair_id], entry) for entry in records.dialogues]
    expected = observe_elicitation(played, words)
    got = seen(records)
    assert list(got) == GOLD_MEASURES + DIALOGUE_MEASURES
    assert {name: got[name] for name in expected} == expected


@pytest.mark.parametrize("name", ["question_rate", "fact_coverage", "facts_per_dialogue"])
def test_intervals_of_shares_end_at_one(name: str) -> None:
    cells = [("a", "p", 1.0), ("a", "q", 1.0), ("b", "p", 1.0), ("b", "q", 0.5)]
    observations = {name: [Observation(*cell) for cell in cells]}
    got = measure_checkpoint(observations, {}, QUICK)[name]
    assert got.mean == 0.875
    assert got.ci_high is not None
    assert (got.ci_high == 1.0) == (name != "facts_per_dialogue")


def test_gains_add_up_to_the_whole() -> None:
    found = seen(checkpoint(0))
    first_dialogues = [-100 + 110, -80 + 90, -60 + 60, -40 + 50]
    gains = zip(found["gain_at_turn_1"], found["gain_at_turn_2"], strict=True)
    assert [one.value + two.value for one, two in gains] == first_dialogues


def test_the_gain_of_a_single_turn_needs_no_score_in_between() -> None:
    own = dialogue("a:p", 0, 0, [TEA])
    controls = [scored("no_dialogue", "a:p", -9), scored("matched", "a:p", -7, own)]
    found = seen(CheckpointRecords(PAIRS, [own], controls, {}))
    assert found["gain_at_turn_1"] == [Observation("a", "p", 2.0)]
    assert "gain_at_turn_2" not in found


def test_a_missing_partner_takes_only_what_needs_it() -> None:
    records = checkpoint(0)
    gone = {("no_dialogue", "a:p"), ("matched", "a:q")}
    rest = [entry for entry in records.controls if (entry.control, entry.pair_id) not in gone]
    found = seen(replace(records, controls=rest))
    counts = {name: len(found[name]) for name in GOLD_MEASURES}
    assert counts == {
        "gold_logprob": 6,
        "gold_logprob_per_token": 6,
        "gold_logprob_best": 3,
        "no_dialogue": 3,
        "persona_given": 4,
        "persona_and_dialogue": 4,
        "contrast": 0,  # no other golds were scored
        "shuffled": 7,
        "matched_minus_shuffled": 5,
        "matched_minus_shuffled_per_token": 5,
        "matched_minus_no_dialogue": 4,
        "gain_at_turn_1": 3,  # a:p has nothing before its first turn
        "gain_at_turn_2": 3,  # a:q has nothing after its last
    }


def test_a_table_that_is_not_there_gives_no_measures() -> None:
    records = checkpoint(0)
    assert list(seen(replace(records, controls=[]))) == DIALOGUE_MEASURES
    assert seen(CheckpointRecords(PAIRS, [], [], {})) == {}
    assert win_rates(records, QUICK) == {}
    assert judge_qualification([records]) is None


def test_changes_are_over_the_pairs_that_both_have() -> None:
    got = changes(seen(checkpoint(0)), seen(checkpoint(1)), QUICK)
    assert list(got) == [
        name
        for name in GOLD_MEASURES + DIALOGUE_MEASURES
        if name not in {"no_dialogue", "persona_given"} | CONSTANT_POLICIES
    ]
    # a:p and a:q gain 4, b:p 2; b:q is m_0's only.
    for name in ("gold_logprob", "gold_logprob_best", "shuffled", "matched_minus_no_dialogue"):
        assert got[name].mean == pytest.approx(10 / 3)
        assert got[name].n == 3
        assert (got[name].num_only_before, got[name].num_only_after) == (1, 0)
    assert got["gold_logprob_per_token"].mean == pytest.approx(0.9 / 3)
    assert got["matched_minus_shuffled"].mean == 0.0
    # All of it came with the first question.
    assert got["gain_at_turn_1"].mean == pytest.approx(10 / 3)
    assert got["gain_at_turn_2"].mean == 0.0
    # Per pair 3 of 4 turns were a question, now 4 of 4; facts 1 and 1, now 2 and 1.
    assert got["question_rate"].mean == 0.25
    assert got["facts_per_dialogue"].mean == 0.5


def test_the_best_of_more_dialogues_is_not_compared() -> None:
    """m_1 has lost a dialogue of a:p: the best of one against the best of two is no change."""
    before, after = checkpoint(0), checkpoint(1)
    rest = [c for c in after.controls if c.key != ("matched", "a:p", "eval-m1/a:p/1", None)]
    got = changes(seen(before), seen(replace(after, controls=rest)), QUICK)
    best = got["gold_logprob_best"]
    assert best.mean == (4 + 2) / 2
    assert (best.num_only_before, best.num_only_after) == (2, 0)
    # A mean of one dialogue is as good as a mean of two: a:p from -95 to -96.
    mean = got["gold_logprob"]
    assert mean.n == 3
    assert mean.mean == pytest.approx((-1 + 4 + 2) / 3)


def test_verdicts_of_both_orders_make_one_comparison() -> None:
    # In any order of the rows: they stand as the judge answered.
    found = comparisons_from_rows(OWN[::-1], "eval-m1")
    assert list(found) == ["own"]
    assert found["own"] == [
        JudgedComparison("a", "p", Verdict.A, Verdict.B, 30, 20),
        JudgedComparison("a", "q", Verdict.A, Verdict.A, 20, 20),
        JudgedComparison("b", "p", Verdict.B, Verdict.A, 10, 30),
        JudgedComparison("b", "q", Verdict.A, Verdict.UNPARSABLE, 25, 20),
    ]


def test_win_rates_are_the_agreed_ones() -> None:
    rates = win_rates(with_verdicts(checkpoint(1), OWN + FIXED), QUICK)
    got = measure_checkpoint({}, rates, QUICK)
    assert {name: value.mean for name, value in got.items()} == {
        "win_rate": 0.5,
        "win_rate_fixed_responder": 1.0,
    }
    details = rates["win_rate"].to_json()
    assert (details["wins"], details["ties"], details["losses"]) == (1, 2, 1)
    # The half verdict of b:q could make its comparison a win, but not a loss.
    assert (details["lower"], details["upper"]) == (0.5, 0.625)


OTHER_ORDER = [OWN[0] | {"order": "sideways"}, OWN[1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            OWN[:3],
            "eval-m1/verdicts: own a q m1 eval-m1/a:q/0 m0 eval-m0/a:q/0: judged candidate_first "
            "only",
        ),
        ([*OWN, OWN[1]], "judged candidate_second twice"),
        (OTHER_ORDER, "unknown order 'sideways'"),
        ([OWN[0] | {"verdict": "C"}], "unknown verdict 'C'"),
        ([OWN[0] | {"comparison": "beauty"}], "unknown comparison"),
    ],
)
def test_verdicts_that_make_no_comparison_are_named(rows: list[Row], message: str) -> None:
    with pytest.raises(DataError, match=message):
        comparisons_from_rows(rows, "eval-m1")


def test_the_json_has_the_keys_of_the_issue() -> None:
    checkpoints = {
        "m0": with_verdicts(checkpoint(0), TRIALS),
        "m1": with_verdicts(checkpoint(1), OWN + FIXED),
    }
    got = evaluation_json(checkpoints, words, ABOUT, QUICK, judge_model="judge-1")
    got = json.loads(json.dumps(got, allow_nan=False))
    assert list(got) == ["m0", "m1", "changes", "judge", "about"]
    assert list(got["m0"]) == GOLD_MEASURES + DIALOGUE_MEASURES
    rates = ["win_rate", "win_rate_fixed_responder"]
    details = [f"{name}_details" for name in rates]
    assert list(got["m1"]) == GOLD_MEASURES + DIALOGUE_MEASURES + rates + details
    for name, value in got["m1"].items():
        assert (set(value) == MEASURE_KEYS) == (name not in details), name
    assert got["m1"]["win_rate_details"]["mean"] == got["m1"]["win_rate"]["mean"] == 0.5
    assert list(got["changes"]) == ["m1"]
    change = got["changes"]["m1"]["gold_logprob"]
    assert set(change) == MEASURE_KEYS | {"num_only_before", "num_only_after"}
    user = {
        **{"model": "embedded", "prompts": "paper", "grounding": "facts"},
        **{"style": ["plain"], "patience": None, "told_already": None},
    }
    assert got["about"] == {
        "split": "test",
        "data": "starter",
        "roleplayer": user,
        "trained_with_roleplayer": user,
        "num_dialogues": 2,
        "turns": [2],
        "seed": 7,
        "confidence": 0.95,
        "changes_from": "m0",
    }


def test_the_judge_is_qualified_by_its_trials() -> None:
    checkpoints = {
        "m0": with_verdicts(checkpoint(0), TRIALS),
        "m1": with_verdicts(checkpoint(1), OWN),
    }
    judge = evaluation_json(checkpoints, words, ABOUT, QUICK, judge_model="judge-1")["judge"]
    assert judge["model"] == "judge-1"
    # One comparison each is not enough to be believed, whatever it says.
    assert judge["fit"] is False
    assert judge["verdict"].startswith("the judge is UNFIT: self_rate: must be")
    found = (judge["self_rate"], judge["gold_rate"], judge["praise_rate"], judge["shuffled_rate"])
    assert found == (0.5, 1.0, 0.5, 1.0)
    assert judge["order_consistency"] == pytest.approx(2 / 3)
    assert {name: rate["wins"] for name, rate in judge["rates"].items()} == {
        "self": 0,
        "gold": 1,
        "praise": 0,
        "shuffled": 1,
    }


def test_a_judge_without_trials_is_unfit() -> None:
    found = judge_qualification([with_verdicts(checkpoint(1), OWN)])
    assert found is not None
    assert not found.fit


def test_an_ungrounded_roleplayer_is_read_by_its_words() -> None:
    """What an answer states counts where nobody knows what the Roleplayer was given."""
    own = dialogue("a:p", 0, 0, [make_turn("Any pets?", "Yes, a brown dog.")])
    records = CheckpointRecords(PAIRS, [own], [], {})
    by_words = replace(GROUNDED, grounding="persona")
    for user, facts in ((GROUNDED, 0.0), (by_words, 1.0)):
        got = evaluation_json({"m0": records}, words, replace(ABOUT, roleplayer=user), QUICK)
        assert got["m0"]["facts_per_dialogue"]["mean"] == facts


@pytest.mark.parametrize("compacted", [False, True])
def test_tables_on_disk_give_the_same_file(tmp_path: Path, compacted: bool) -> None:
    m0, m1 = checkpoint(0), checkpoint(1)
    scopes = {"eval-m1": tables(m1, OWN + FIXED), "eval-m0": tables(m0, TRIALS)}
    store = stored(tmp_path, scopes)
    if compacted:
        store.compact("eval-m0")
    assert read_checkpoint(store, "eval-m1", PAIRS) == with_verdicts(m1, OWN + FIXED)
    wrote = write_evaluation(store, PAIRS.values(), words, ABOUT, QUICK, judge_model="judge-1")
    in_memory = {"m0": with_verdicts(m0, TRIALS), "m1": with_verdicts(m1, OWN + FIXED)}
    assert wrote == evaluation_json(in_memory, words, ABOUT, QUICK, judge_model="judge-1")
    assert json.loads((tmp_path / "eval.json").read_text()) == json.loads(json.dumps(wrote))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval-m0", "eval-m1", "eval.json"]


def test_one_checkpoint_alone_has_nothing_to_change_from(tmp_path: Path) -> None:
    store = stored(tmp_path, {"eval-m2": tables(checkpoint(0))})
    got = write_evaluation(store, PAIRS.values(), words, ABOUT, QUICK)
    assert list(got) == ["m2", "changes", "about"]
    assert got["changes"] == {}
    assert got["about"]["changes_from"] == "m2"


def spoilt(records: CheckpointRecords, kind: str) -> dict[str, list[Row]]:
    rows: dict[str, list[Any]] = tables(records)
    if kind == "dialogue":
        rows["dialogues"] *= 2
    elif kind == "control":
        rows["controls"] += rows["controls"][:1]
    elif kind == "pair":
        rows["controls"][0]["pair_id"] = "z:p"
    else:
        rows["dialogues"] = rows["dialogues"][1:]
    return rows


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dialogue", r"eval-m0/dialogues/part-\d+.parquet: eval-m0/a:p/0 is there twice"),
        ("control", r"eval-m0/controls/part-\d+.parquet: no_dialogue a:p is there twice"),
        ("pair", r"eval-m0: the data have no pair 'z:p' \(1 such\)"),
        ("orphan", "eval-m0/controls: no dialogue 'eval-m0/a:p/0' in eval-m0"),
    ],
)
def test_tables_that_contradict_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    store = stored(tmp_path, {"eval-m0": spoilt(checkpoint(0), kind)})
    with pytest.raises(DataError, match=message):
        write_evaluation(store, PAIRS.values(), words, ABOUT, QUICK)
    assert not (tmp_path / "eval.json").exists()


def test_nothing_evaluated_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint was evaluated here"):
        write_evaluation(RunStore(tmp_path), PAIRS.values(), words, ABOUT)
