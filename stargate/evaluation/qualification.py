"""Whether a judge can be believed, from what it said about comparisons with a known answer.

    m_0 against itself                 -> neither should win, no position should be favoured
    gold against m_0                   -> the gold should win
    m_0 against constant empty praise  -> m_0 should win
    true persona against shuffled      -> the answer for this persona should win
    the last three together            -> both orders should agree
    all four                           -> verdicts should be readable

A judge is fit when it passes every criterion. One that was not asked enough fails too: what was
not shown is not believed. Win rates of an unfit judge are printed as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stargate.config.judge import JudgeThresholds
from stargate.evaluation.statistics import BootstrapConfig, Measure
from stargate.evaluation.verdicts import Verdict
from stargate.evaluation.win_rate import JudgedComparison, WinRate, win_rate

TRIALS = ("self", "gold", "praise", "shuffled")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One requirement with what was found. `value` None: there was nothing to find it from."""

    name: str
    value: float | None
    requirement: str
    passed: bool
    n: int
    ci_low: float | None = None
    ci_high: float | None = None

    def __str__(self) -> str:
        found = "nothing" if self.value is None else f"{self.value:.2f}"
        return f"{self.name}: must be {self.requirement}, got {found} (n = {self.n})"


@dataclass(frozen=True, slots=True)
class Qualification:
    """The criteria, and the four sets of comparisons that they come from."""

    criteria: tuple[Criterion, ...]
    rates: dict[str, WinRate]

    @property
    def fit(self) -> bool:
        return all(criterion.passed for criterion in self.criteria)

    @property
    def failures(self) -> tuple[Criterion, ...]:
        return tuple(criterion for criterion in self.criteria if not criterion.passed)

    @property
    def verdict(self) -> str:
        """One line: fit, or unfit with every failed criterion and its value."""
        if self.fit:
            return "the judge is fit"
        return "the judge is UNFIT: " + "; ".join(map(str, self.failures))

    def to_json(self) -> dict[str, Any]:
        """What stands under `judge` in eval.json: fit, each criterion's value by name, failures."""
        return {
            "fit": self.fit,
            **{criterion.name: criterion.value for criterion in self.criteria},
            "failures": [str(criterion) for criterion in self.failures],
            "criteria": {
                criterion.name: {
                    key: value for key, value in asdict(criterion).items() if key != "name"
                }
                for criterion in self.criteria
            },
        }


def qualify(
    trials: Mapping[str, Sequence[JudgedComparison]],
    thresholds: JudgeThresholds | None = None,
    config: BootstrapConfig | None = None,
) -> Qualification:
    """Compares what a judge did with what it must do.

    `trials` are the comparisons with a known answer, by TRIALS; the better response is always the
    candidate. In "self" both are m_0's, from two dialogues about the same pair.
    """
    limits = thresholds or JudgeThresholds()
    rates = {name: win_rate(trials[name], config) for name in TRIALS}
    with_answer = [*trials["gold"], *trials["praise"], *trials["shuffled"]]
    criteria = (
        _near_half("self_rate", rates["self"].average.measure, limits),
        _near_half("self_first_shown", rates["self"].first_shown.measure, limits),
        _at_least("gold_rate", rates["gold"].agreed.measure, limits.min_gold_rate, limits),
        _at_least("praise_rate", rates["praise"].agreed.measure, limits.min_praise_rate, limits),
        _at_least(
            "shuffled_rate", rates["shuffled"].agreed.measure, limits.min_shuffled_rate, limits
        ),
        _order_consistency(with_answer, limits),
        _unparsable([entry for name in TRIALS for entry in trials[name]], limits),
    )
    return Qualification(criteria, rates)


def _near_half(name: str, found: Measure, limits: JudgeThresholds) -> Criterion:
    most = limits.max_self_deviation
    # Rounded, because 0.5 - 0.1 is not quite 0.4 and a rate of exactly 0.4 is allowed.
    near = found.mean is not None and round(abs(found.mean - 0.5), 9) <= most
    return _criterion(name, found, f"{0.5 - most:g} to {0.5 + most:g}", near, limits)


def _at_least(name: str, found: Measure, minimum: float, limits: JudgeThresholds) -> Criterion:
    reached = found.mean is not None and found.mean >= minimum
    return _criterion(name, found, f"{minimum:g} or more", reached, limits)


def _criterion(
    name: str, found: Measure, requirement: str, reached: bool, limits: JudgeThresholds
) -> Criterion:
    """What was reached with too few comparisons counts as not reached."""
    return Criterion(
        name,
        found.mean,
        f"{requirement} over at least {limits.min_comparisons} comparisons",
        reached and found.n >= limits.min_comparisons,
        found.n,
        found.ci_low,
        found.ci_high,
    )


def _order_consistency(
    comparisons: Sequence[JudgedComparison], limits: JudgeThresholds
) -> Criterion:
    """Over the comparisons that have a better response: between equals a judge may well waver.

    Two verdicts agree when both name the same response. Two ties are no opinion, so they don't
    count as agreement, and neither does a pair with an unparsable verdict.
    """
    agreeing = sum(
        first == second and first in (0.0, 1.0)
        for first, second in (entry.scores for entry in comparisons)
    )
    return _at_least(
        "order_consistency",
        _share(agreeing, len(comparisons)),
        limits.min_order_consistency,
        limits,
    )


def _unparsable(comparisons: Sequence[JudgedComparison], limits: JudgeThresholds) -> Criterion:
    verdicts = [
        verdict
        for entry in comparisons
        for verdict in (entry.candidate_first, entry.candidate_second)
    ]
    found = _share(verdicts.count(Verdict.UNPARSABLE), len(verdicts))
    return Criterion(
        "unparsable_rate",
        found.mean,
        f"{limits.max_unparsable_rate:g} or less",
        found.mean is not None and found.mean <= limits.max_unparsable_rate,
        found.n,
    )


def _share(count: int, n: int) -> Measure:
    """A share without an interval."""
    return Measure(count / n if n else None, None, None, None, n, 0, 0)
