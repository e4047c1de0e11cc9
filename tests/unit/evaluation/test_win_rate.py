"""Win-rate arithmetic on tables of verdicts with a known result."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.evaluation.statistics import BootstrapConfig
from stargate.evaluation.verdicts import Verdict
from stargate.evaluation.win_rate import (
    JudgedComparison,
    LengthControlled,
    length_controlled,
    win_rate,
)

A, B, TIE, BAD = Verdict.A, Verdict.B, Verdict.TIE, Verdict.UNPARSABLE


def compared(
    *verdicts: tuple[Verdict, Verdict], lengths: list[int] | None = None, personas: int = 3
) -> list[JudgedComparison]:
    """One comparison each, over tasks x personas; `lengths` are candidate minus baseline."""
    return [
        JudgedComparison(
            f"t{index // personas}",
            f"p{index % personas}",
            first,
            second,
            100 + (lengths[index] if lengths else 0),
            100,
        )
        for index, (first, second) in enumerate(verdicts)
    ]


@pytest.mark.parametrize(
    ("first", "second", "agreed", "average", "bounds"),
    [
        (A, B, 1.0, 1.0, (1.0, 1.0)),  # the candidate in both orders
        (B, A, 0.0, 0.0, (0.0, 0.0)),  # the baseline in both orders
        (A, A, 0.5, 0.5, (0.5, 0.5)),  # always the first shown
        (B, B, 0.5, 0.5, (0.5, 0.5)),  # always the second shown
        (TIE, TIE, 0.5, 0.5, (0.5, 0.5)),
        (A, TIE, 0.5, 0.75, (0.5, 0.5)),  # a win in one order only is a tie
        (TIE, A, 0.5, 0.25, (0.5, 0.5)),
        (A, BAD, 0.5, 0.75, (0.5, 1.0)),
        (BAD, A, 0.5, 0.25, (0.0, 0.5)),
        (TIE, BAD, 0.5, 0.5, (0.5, 0.5)),
        (BAD, BAD, 0.5, 0.5, (0.0, 1.0)),
    ],
)
def test_one_comparison(
    first: Verdict, second: Verdict, agreed: float, average: float, bounds: tuple[float, float]
) -> None:
    got = win_rate(compared((first, second)))
    assert got.agreed.mean == agreed
    assert got.average.mean == average
    assert (got.agreed.lower, got.agreed.upper) == bounds
    assert (got.wins, got.ties, got.losses) == (
        int(agreed == 1.0),
        int(agreed == 0.5),
        int(agreed == 0.0),
    )


def test_a_table_with_known_result() -> None:
    got = win_rate(
        compared(
            *[(A, B)] * 4,  # wins
            *[(B, A)] * 2,  # losses
            *[(A, A)] * 2,  # the judge likes the first
            (TIE, TIE),
            (A, BAD),
            (BAD, BAD),
            (B, TIE),
        )
    )
    assert (got.wins, got.ties, got.losses, got.agreed.n) == (4, 6, 2, 12)
    assert got.agreed.mean == 7 / 12
    # Against: (A, BAD) stays a tie, (BAD, BAD) a loss. For: both wins.
    assert got.agreed.lower == 6.5 / 12
    assert got.agreed.upper == 8 / 12
    # First order: 4 + 0 + 2 + .5 + 1 + .5 + 0; second: 4 + 0 + 0 + .5 + .5 + .5 + .5.
    assert got.candidate_first.mean == 8 / 12
    assert (got.candidate_first.lower, got.candidate_first.upper) == (7.5 / 12, 8.5 / 12)
    assert got.candidate_second.mean == 6 / 12
    assert (got.candidate_second.lower, got.candidate_second.upper) == (5 / 12, 7 / 12)
    assert got.average.mean == 7 / 12
    # Shown first and preferred: 4 + 2 + 2 x 2 + 2 x .5 + (1 + .5) + 2 x .5 + (0 + .5), of 24.
    assert got.first_shown.mean == pytest.approx(14 / 24)
    assert got.num_unparsable_verdicts == 3
    # Of the ten with two verdicts: 4 + 2 + 1 name the same.
    assert got.order_consistency == 7 / 10


def test_a_judge_that_always_takes_the_first_decides_nothing() -> None:
    got = win_rate(compared(*[(A, A)] * 30))
    assert got.agreed.mean == 0.5
    assert got.candidate_first.mean == 1.0
    assert got.candidate_second.mean == 0.0
    assert got.first_shown.mean == 1.0
    assert got.order_consistency == 0.0


def test_a_judge_that_says_nothing_readable_leaves_everything_open() -> None:
    got = win_rate(compared(*[(BAD, BAD)] * 5))
    assert got.num_unparsable_verdicts == 10
    for rate in (got.agreed, got.average, got.candidate_first, got.first_shown):
        assert (rate.lower, rate.upper) == (0.0, 1.0)
    assert got.order_consistency is None


def test_nothing_compared() -> None:
    got = win_rate([])
    assert got.agreed.mean is None
    assert got.agreed.lower is None
    assert got.length_controlled.reason == "nothing was compared"
    json.dumps(got.to_json(), allow_nan=False)


def test_intervals_are_clustered_and_stay_within_0_and_1() -> None:
    verdicts = [(A, B)] * 55 + [(B, A)] * 5
    got = win_rate(compared(*verdicts, personas=6)).agreed
    assert (got.n, got.task_clusters, got.persona_clusters) == (60, 10, 6)
    assert got.mean == 55 / 60
    assert got.ci_low is not None and got.ci_high is not None
    assert 0.0 <= got.ci_low < 55 / 60 < got.ci_high <= 1.0


def test_json_has_the_measures_keys() -> None:
    got = json.loads(json.dumps(win_rate(compared((A, B), (B, A), (A, A))).to_json()))
    assert {"mean", "ci_low", "ci_high", "n", "task_clusters", "persona_clusters"} <= set(got)
    assert (got["lower"], got["upper"], got["num_unparsable_verdicts"]) == (0.5, 0.5, 0)
    assert got["length_controlled"]["rate"] is None


def test_length_is_reported() -> None:
    got = win_rate(compared((A, B), (B, A), lengths=[10, -4]))
    assert got.length_difference.mean == 3.0


def logistic_table(intercept: float, slope: float, seed: int) -> list[JudgedComparison]:
    """25 tasks x 20 personas whose outcome depends on length by these coefficients."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(-40, 120, 500)
    won = generator.random(500) < 1 / (1 + np.exp(-(intercept + slope * lengths)))
    return compared(
        *[(A, B) if win else (B, A) for win in won], lengths=lengths.tolist(), personas=20
    )


def test_a_preference_for_length_is_taken_out() -> None:
    comparisons = logistic_table(intercept=0.0, slope=0.03, seed=1)
    got = win_rate(comparisons)
    assert got.agreed.mean is not None and got.agreed.mean > 0.65
    fair = got.length_controlled
    assert fair.rate == pytest.approx(0.5, abs=0.06)
    assert fair.slope == pytest.approx(0.03, abs=0.006)
    assert fair.ci_low is not None and fair.ci_high is not None
    assert fair.ci_low < 0.5 < fair.ci_high
    assert fair.ci_low < fair.rate < fair.ci_high
    assert not fair.extrapolated and fair.reason is None


def test_the_fit_is_that_of_statsmodels() -> None:
    import statsmodels.api as sm

    comparisons = logistic_table(intercept=0.6, slope=0.01, seed=2)
    lengths = np.array([c.candidate_length - c.baseline_length for c in comparisons], dtype=float)
    won = np.array([c.candidate_first is A for c in comparisons], dtype=float)
    groups = np.column_stack(
        [[int(c.task[1:]) for c in comparisons], [int(c.persona[1:]) for c in comparisons]]
    )
    fitted = sm.Logit(won, sm.add_constant(lengths)).fit(
        disp=0, cov_type="cluster", cov_kwds={"groups": groups}
    )
    got = length_controlled(comparisons, BootstrapConfig(num_resamples=1000))
    assert got.rate == pytest.approx(1 / (1 + math.exp(-fitted.params[0])), abs=1e-6)
    assert got.slope == pytest.approx(fitted.params[1], abs=1e-6)
    assert got.ci_low is not None and got.ci_high is not None
    width = math.log(got.ci_high / (1 - got.ci_high)) - math.log(got.ci_low / (1 - got.ci_low))
    assert width == pytest.approx(2 * 2.0 * fitted.bse[0], rel=0.25)


def test_ties_are_half_a_win() -> None:
    lengths = [-20, -10, 0, 10, 20, 30]
    got = length_controlled(compared(*[(A, A)] * 6, lengths=lengths))
    assert got.rate == pytest.approx(0.5)
    assert got.slope == pytest.approx(0.0)
    # All residuals are zero: there is nothing to make an interval from.
    assert got.ci_low is None
    assert got.reason is not None and got.reason.startswith("no interval: ")


@pytest.mark.parametrize(
    ("verdicts", "lengths", "reason"),
    [
        ([(A, B), (A, B), (B, A), (B, A)], [30, 20, -5, -9], "separates"),
        ([(A, B), (A, B), (B, A), (B, A)], [-9, -5, 20, 30], "separates"),
        ([(A, B), (A, A), (B, A), (B, A)], [30, 20, 20, -9], "separates"),
        ([(A, B), (A, B), (A, B)], [1, 2, 3], "all outcomes are the same"),
        ([(A, B), (B, A), (B, A)], [7, 7, 7], "the same everywhere"),
    ],
)
def test_what_has_no_finite_fit_says_why(
    verdicts: list[tuple[Verdict, Verdict]], lengths: list[int], reason: str
) -> None:
    got = length_controlled(compared(*verdicts, lengths=lengths))
    assert got.rate is None and got.ci_low is None
    assert reason in (got.reason or "")


def test_a_rate_outside_the_data_is_called_extrapolated() -> None:
    verdicts = [(A, B), (B, A), (A, B), (B, A), (A, B), (A, B)]
    got = length_controlled(compared(*verdicts, lengths=[50, 60, 70, 80, 90, 55]))
    assert got.rate is not None and got.extrapolated


def test_one_task_has_a_rate_without_interval() -> None:
    comparisons = compared((A, B), (B, A), (A, B), lengths=[-5, 3, 9], personas=9)
    got = length_controlled(comparisons)
    assert isinstance(got, LengthControlled)
    assert got.rate is not None and got.ci_low is None
    assert "1 task(s)" in (got.reason or "")


@given(st.lists(st.tuples(st.sampled_from(Verdict), st.sampled_from(Verdict)), max_size=12))
def test_every_comparison_counts_and_bounds_hold(
    verdicts: list[tuple[Verdict, Verdict]],
) -> None:
    got = win_rate(compared(*verdicts), BootstrapConfig(num_resamples=200))
    assert got.wins + got.ties + got.losses == len(verdicts)
    for rate in (
        got.agreed,
        got.average,
        got.candidate_first,
        got.candidate_second,
        got.first_shown,
    ):
        assert rate.n == len(verdicts)
        if verdicts:
            assert rate.mean is not None
            assert rate.lower is not None and rate.upper is not None
            assert 0.0 <= rate.lower <= rate.mean + 1e-12
            assert rate.mean <= rate.upper + 1e-12 <= 1.0 + 1e-12
    flipped = win_rate(
        compared(*[(second, first) for first, second in verdicts]),
        BootstrapConfig(num_resamples=200),
    )
    if verdicts:
        # The other response as candidate: the same verdicts say one minus the rate.
        assert flipped.agreed.mean == pytest.approx(1 - (got.agreed.mean or 0.0))
