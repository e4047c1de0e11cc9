"""Judges of known character: a good one, and ones that must be called unfit."""

import json
import random
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from stargate.config.judge import JudgeThresholds
from stargate.evaluation.qualification import TRIALS, Qualification, qualify
from stargate.evaluation.statistics import BootstrapConfig
from stargate.evaluation.verdicts import Verdict
from stargate.evaluation.win_rate import JudgedComparison

A, B, TIE, BAD = Verdict.A, Verdict.B, Verdict.TIE, Verdict.UNPARSABLE
Judge = Callable[[bool], tuple[Verdict, Verdict]]  # is there a better one? -> both orders


def judged(judge: Judge, has_better: bool, n: int) -> list[JudgedComparison]:
    return [
        JudgedComparison(f"t{i // 5}", f"p{i % 5}", *judge(has_better), 100, 100) for i in range(n)
    ]


def trials(judge: Judge, n: int = 40) -> dict[str, list[JudgedComparison]]:
    return {name: judged(judge, name != "self", n) for name in TRIALS}


def qualified(judge: Judge, n: int = 40) -> Qualification:
    return qualify(trials(judge, n), config=BootstrapConfig(num_resamples=200))


def failed(found: Qualification) -> list[str]:
    return [criterion.name for criterion in found.failures]


def test_a_good_judge_is_fit() -> None:
    found = qualified(lambda better: (A, B) if better else (TIE, TIE))
    assert found.fit
    assert found.verdict == "the judge is fit"
    values = {criterion.name: criterion.value for criterion in found.criteria}
    assert values == {
        "self_rate": 0.5,
        "self_first_shown": 0.5,
        "gold_rate": 1.0,
        "praise_rate": 1.0,
        "shuffled_rate": 1.0,
        "order_consistency": 1.0,
        "unparsable_rate": 0.0,
    }


def test_a_judge_that_takes_the_first_is_unfit_though_its_self_rate_is_half() -> None:
    found = qualified(lambda _: (A, A))
    assert not found.fit
    assert failed(found) == [
        "self_first_shown",
        "gold_rate",
        "praise_rate",
        "shuffled_rate",
        "order_consistency",
    ]
    assert found.verdict == (
        "the judge is UNFIT: "
        "self_first_shown: must be 0.4 to 0.6 over at least 20 comparisons, got 1.00 (n = 40); "
        "gold_rate: must be 0.6 or more over at least 20 comparisons, got 0.50 (n = 40); "
        "praise_rate: must be 0.8 or more over at least 20 comparisons, got 0.50 (n = 40); "
        "shuffled_rate: must be 0.6 or more over at least 20 comparisons, got 0.50 (n = 40); "
        "order_consistency: must be 0.6 or more over at least 20 comparisons, got 0.00 (n = 120)"
    )


def test_a_coin_is_unfit() -> None:
    coin = random.Random(3)
    found = qualified(lambda _: (coin.choice([A, B]), coin.choice([A, B])), n=200)
    assert {"gold_rate", "praise_rate", "shuffled_rate", "order_consistency"} <= set(failed(found))
    assert "self_rate" not in failed(found)


def test_a_judge_that_prefers_praise_fails_there_only() -> None:
    good: Judge = lambda better: (A, B) if better else (TIE, TIE)  # noqa: E731 - a one-line judge
    found = qualify(trials(good) | {"praise": judged(lambda _: (B, A), True, 40)})
    # It is consistent all the same: both orders name the praise.
    assert failed(found) == ["praise_rate"]
    assert found.failures[0].value == 0.0


def test_ties_everywhere_are_not_consistency() -> None:
    found = qualified(lambda _: (TIE, TIE))
    assert failed(found) == ["gold_rate", "praise_rate", "shuffled_rate", "order_consistency"]


def test_unreadable_verdicts_make_it_unfit() -> None:
    count = iter(range(10_000))
    found = qualified(
        lambda better: (BAD if next(count) % 4 == 0 else A, B) if better else (TIE, TIE)
    )
    # A quarter of the first orders in three of four sets: 30 of 320 verdicts are within the
    # limit, but each of those comparisons is a tie.
    assert failed(found) == []
    worse = qualified(lambda better: (BAD, B) if better else (TIE, TIE))
    assert "unparsable_rate" in failed(worse)
    [criterion] = [c for c in worse.criteria if c.name == "unparsable_rate"]
    assert criterion.value == 120 / 320


def test_too_few_comparisons_are_not_believed() -> None:
    good: Judge = lambda better: (A, B) if better else (TIE, TIE)  # noqa: E731 - a one-line judge
    found = qualified(good, n=5)
    # Order consistency is over three sets: 15 comparisons.
    assert failed(found) == [
        "self_rate",
        "self_first_shown",
        "gold_rate",
        "praise_rate",
        "shuffled_rate",
        "order_consistency",
    ]
    assert "gold_rate: must be 0.6 or more over at least 20" in found.verdict


def test_a_judge_that_was_not_asked_is_unfit() -> None:
    found = qualify({name: [] for name in TRIALS})
    assert not found.fit
    assert len(found.failures) == len(found.criteria)
    assert "gold_rate: must be 0.6 or more over at least 20 comparisons, got nothing" in str(
        found.verdict
    )


def test_a_limit_itself_is_allowed() -> None:
    """0.5 - 0.1 is 0.4 also in floating point."""
    count = iter(range(10_000))

    def judge(better: bool) -> tuple[Verdict, Verdict]:
        if better:
            return A, B
        return (A, B) if next(count) % 5 < 2 else (B, A)

    found = qualified(judge)
    [criterion] = [c for c in found.criteria if c.name == "self_rate"]
    assert criterion.value == pytest.approx(0.4)
    assert criterion.passed


def test_json_has_fit_and_every_value() -> None:
    got = json.loads(json.dumps(qualified(lambda _: (A, A)).to_json(), allow_nan=False))
    assert got["fit"] is False
    assert got["self_rate"] == 0.5
    assert got["order_consistency"] == 0.0
    assert len(got["failures"]) == 5
    assert got["criteria"]["gold_rate"]["passed"] is False


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValidationError):
        JudgeThresholds(min_gold_rate=1.2)
    with pytest.raises(ValidationError):
        JudgeThresholds(min_gold=0.6)  # type: ignore[call-arg]
    strict = JudgeThresholds(min_order_consistency=1.0, max_self_deviation=0.0)
    assert qualify(trials(lambda b: (A, B) if b else (TIE, TIE)), strict).fit


def test_limits_that_allow_everything_are_still_told_by_their_kind() -> None:
    limits = JudgeThresholds(max_self_deviation=0.5, max_unparsable_rate=1.0)
    found = qualify(trials(lambda better: (A, B)), limits, BootstrapConfig(num_resamples=200))
    told = {criterion.name: criterion.requirement for criterion in found.criteria}
    assert told["self_rate"] == "0 to 1 over at least 20 comparisons"
    assert told["unparsable_rate"] == "1 or less"
