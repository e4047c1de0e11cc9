"""How often a judge prefers a candidate's response to a baseline's.

    both orders of each comparison -> verdicts -> wins, losses, ties, unparsable -> rates
        -> length-controlled rate

A judge favours a position (the authors' by about 10 points), so every comparison is judged with
the candidate shown first and shown second, and only a win in both orders is a win:

    candidate first    A      A      B      B      tie    A or tie     none
    candidate second   B      A      B      A      tie    tie or A     any
    agreed             win    tie    tie    loss   tie    tie          tie, bounded

A rate is (wins + ties / 2) / comparisons. An unparsable verdict is a tie in the rate, and `lower`
and `upper` say what the rate would be if all of them had gone to the baseline or the candidate.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stargate.evaluation.statistics import BootstrapConfig, Measure, Observation, measure
from stargate.evaluation.two_way import Floats
from stargate.evaluation.verdicts import Verdict

_WIN, _TIE, _LOSS = 1.0, 0.5, 0.0


@dataclass(frozen=True, slots=True)
class JudgedComparison:
    """A candidate's response against a baseline's for one pair, judged in both orders.

    `candidate_first` is the verdict where the candidate was A, `candidate_second` where it was B.
    Lengths are in any one unit, tokens for example.
    """

    task: str
    persona: str
    candidate_first: Verdict
    candidate_second: Verdict
    candidate_length: int
    baseline_length: int

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """The candidate's score in each order: 1, 0.5 or 0; None if unparsable."""
        return (
            _score(self.candidate_first, Verdict.A),
            _score(self.candidate_second, Verdict.B),
        )


@dataclass(frozen=True, slots=True)
class Rate(Measure):
    """A rate, and the rate if all unparsable verdicts had gone to the baseline or the candidate."""

    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate at equal length: P(win) at length difference 0 in a logistic regression.

    `rate` is None with a `reason` where the fit says nothing; the interval alone is None where
    clusters or spread are missing. `extrapolated`: no comparison is on the other side of 0, so
    the rate at 0 is a guess along the curve. `slope` is in log-odds per unit of length.
    """

    rate: float | None
    ci_low: float | None
    ci_high: float | None
    slope: float | None
    extrapolated: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class WinRate:
    """All that a set of comparisons says.

    `agreed` counts a win only where both orders agree; `average` is the mean of the two orders;
    `first_shown` is the share of verdicts for the response shown first, whoever wrote it: 0.5 for
    a judge without a favourite position. `order_consistency` is the share of comparisons with two
    parsed verdicts in which both name the same winner, or both none.
    """

    agreed: Rate
    wins: int
    ties: int
    losses: int
    num_unparsable_verdicts: int
    order_consistency: float | None
    average: Rate
    candidate_first: Rate
    candidate_second: Rate
    first_shown: Rate
    length_difference: Measure
    length_controlled: LengthControlled

    def to_json(self) -> dict[str, Any]:
        """What stands under `<checkpoint>.win_rate_details` in eval.json: the agreed rate's own
        keys, and the rest beside them.
        """
        values = asdict(self)
        return {**values.pop("agreed"), **values}


def win_rate(
    comparisons: Sequence[JudgedComparison], config: BootstrapConfig | None = None
) -> WinRate:
    """Rates of the candidate with two-way clustered intervals. No comparison is left out."""
    outcomes = [_agreed(*_filled(entry, _TIE)) for entry in comparisons]
    parsed = [entry.scores for entry in comparisons if None not in entry.scores]

    def rate(value: Callable[[float, float], float]) -> Rate:
        return _rate(comparisons, lambda entry, missing: value(*_filled(entry, missing)), config)

    return WinRate(
        agreed=rate(_agreed),
        average=rate(lambda first, second: (first + second) / 2),
        candidate_first=rate(lambda first, _: first),
        candidate_second=rate(lambda _, second: second),
        first_shown=_rate(comparisons, _share_for_first_shown, config),
        order_consistency=(
            sum(first == second for first, second in parsed) / len(parsed) if parsed else None
        ),
        wins=outcomes.count(_WIN),
        ties=outcomes.count(_TIE),
        losses=outcomes.count(_LOSS),
        num_unparsable_verdicts=sum(entry.scores.count(None) for entry in comparisons),
        length_difference=measure(
            [Observation(c.task, c.persona, float(_difference(c))) for c in comparisons], config
        ),
        length_controlled=length_controlled(comparisons, config),
    )


def length_controlled(
    comparisons: Sequence[JudgedComparison], config: BootstrapConfig | None = None
) -> LengthControlled:
    """Regresses the agreed outcome (tie: half a win) on candidate minus baseline length.

    The interval is that of the intercept: its influence values, one per comparison, average to
    the estimate's deviation, so the two-way interval of their mean is the intercept's.
    """
    from scipy.special import expit

    lengths = np.array([_difference(entry) for entry in comparisons], dtype=float)
    outcomes = np.array([_agreed(*_filled(entry, _TIE)) for entry in comparisons])
    fitted = _why_no_fit(lengths, outcomes) or _fit_logistic(lengths, outcomes)
    if isinstance(fitted, str):
        return LengthControlled(None, None, None, None, False, fitted)
    intercept, slope, influence = fitted
    linear = measure(
        [
            Observation(entry.task, entry.persona, intercept + float(value))
            for entry, value in zip(comparisons, influence, strict=True)
        ],
        config,
    )
    return LengthControlled(
        rate=float(expit(intercept)),
        ci_low=None if linear.ci_low is None else float(expit(linear.ci_low)),
        ci_high=None if linear.ci_high is None else float(expit(linear.ci_high)),
        slope=slope,
        extrapolated=bool(lengths.min() > 0 or lengths.max() < 0),
        reason=None if linear.ci_low is not None else f"no interval: {linear.why_no_interval}",
    )


def _score(verdict: Verdict, candidate: Verdict) -> float | None:
    if verdict is Verdict.UNPARSABLE:
        return None
    if verdict is Verdict.TIE:
        return _TIE
    return _WIN if verdict is candidate else _LOSS


def _agreed(first: float, second: float) -> float:
    """What both orders say; a tie where they differ."""
    return first if first == second else _TIE


def _filled(comparison: JudgedComparison, missing: float) -> tuple[float, float]:
    """The two scores with `missing` for an unparsable verdict."""
    first, second = comparison.scores
    return missing if first is None else first, missing if second is None else second


def _difference(comparison: JudgedComparison) -> int:
    return comparison.candidate_length - comparison.baseline_length


def _rate(
    comparisons: Sequence[JudgedComparison],
    value: Callable[[JudgedComparison, float], float],
    config: BootstrapConfig | None,
) -> Rate:
    """One observation per comparison: its `value`, given the score of an unparsable verdict."""
    observations = [
        Observation(entry.task, entry.persona, value(entry, _TIE)) for entry in comparisons
    ]
    return Rate(
        **asdict(measure(observations, config, bounds=(0.0, 1.0))),
        lower=_mean([value(entry, _LOSS) for entry in comparisons]),
        upper=_mean([value(entry, _WIN) for entry in comparisons]),
    )


def _share_for_first_shown(comparison: JudgedComparison, missing: float) -> float:
    """How much of the two verdicts went to the response shown first: the second time the
    baseline's.
    """
    first, _ = _filled(comparison, missing)
    _, second = _filled(comparison, 1.0 - missing)
    return (first + 1.0 - second) / 2


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _why_no_fit(lengths: Floats, outcomes: Floats) -> str | None:
    """Why a logistic regression has no finite answer here, if it has none."""
    if not len(lengths):
        return "nothing was compared"
    if lengths.min() == lengths.max():
        return "the length difference is the same everywhere"
    # A tie counts as half a win and half a loss, so it stands on both sides.
    won, lost = lengths[outcomes > _LOSS], lengths[outcomes < _WIN]
    if not len(won) or not len(lost):
        return "all outcomes are the same"
    if won.min() >= lost.max() or lost.min() >= won.max():
        return "length separates wins from losses, so the slope has no finite estimate"
    return None


def _fit_logistic(lengths: Floats, outcomes: Floats) -> tuple[float, float, Floats] | str:
    """Intercept, slope and the intercept's influence values; or why the fit failed."""
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import ConvergenceWarning, PerfectSeparationWarning

    scale = float(lengths.std())
    design = sm.add_constant(lengths / scale, has_constant="add")
    with warnings.catch_warnings():
        for category in (ConvergenceWarning, RuntimeWarning):
            warnings.simplefilter("error", category)
        # Separation was ruled out exactly (_why_no_fit); all ties, which are fitted perfectly by
        # a rate of 0.5, would be taken for it.
        warnings.simplefilter("ignore", PerfectSeparationWarning)
        try:
            result = sm.GLM(outcomes, design, family=sm.families.Binomial()).fit()
        except (ConvergenceWarning, RuntimeWarning, np.linalg.LinAlgError) as problem:
            return f"the logistic regression did not converge ({problem})"
    if not result.converged or not np.all(np.isfinite(result.params)):
        return "the logistic regression did not converge"
    # Newton's step of one comparison: inverse information x its score, n times so that the mean
    # over comparisons is the whole estimate's.
    scores = design * (outcomes - result.fittedvalues)[:, None]
    influence: Floats = len(lengths) * (scores @ result.normalized_cov_params)[:, 0]
    return float(result.params[0]), float(result.params[1]) / scale, influence
