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

    def to_json(self, model: str | None = None) -> dict[str, Any]:
        """What stands under `judge` in eval.json; `model` is the judge's."""
        return {
            "fit": self.fit,
            **{criterion.name: criterion.value for criterion in self.criteria},
            "failures": [str(criterion) for criterion in self.failures],
            "criteria": {found.pop("name"): found for found in map(asdict, self.criteria)},
            "model": model,
            "verdict": self.verdict,
            "rates": {name: rate.to_json() for name, rate in self.rates.items()},
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
    with_answer = [entry for name in TRIALS if name != "self" for entry in trials[name]]
    # Between equals a judge may well waver. Two ties are no opinion, so they don't count as
    # agreement, and neither does a pair with an unparsable verdict.
    num_agreeing = sum(entry.scores in ((0.0, 0.0), (1.0, 1.0)) for entry in with_answer)
    consistency = _share(num_agreeing, len(with_answer))
    verdicts = [
        verdict
        for name in TRIALS
        for entry in trials[name]
        for verdict in (entry.candidate_first, entry.candidate_second)
    ]
    unparsable = _share(verdicts.count(Verdict.UNPARSABLE), len(verdicts))
    most = limits.max_unparsable_rate
    criteria = (
        _near_half("self_rate", rates["self"].average, limits),
        _near_half("self_first_shown", rates["self"].first_shown, limits),
        _at_least("gold_rate", rates["gold"].agreed, limits.min_gold_rate, limits),
        _at_least("praise_rate", rates["praise"].agreed, limits.min_praise_rate, limits),
        _at_least("shuffled_rate", rates["shuffled"].agreed, limits.min_shuffled_rate, limits),
        _at_least("order_consistency", consistency, limits.min_order_consistency, limits),
        _criterion("unparsable_rate", unparsable, f"{most:g} or less", 0.0, most),
    )
    return Qualification(criteria, rates)


def _near_half(name: str, found: Measure, limits: JudgeThresholds) -> Criterion:
    low, high = 0.5 - limits.max_self_deviation, 0.5 + limits.max_self_deviation
    return _criterion(name, found, f"{low:g} to {high:g}", low, high, limits.min_comparisons)


def _at_least(name: str, found: Measure, minimum: float, limits: JudgeThresholds) -> Criterion:
    requirement = f"{minimum:g} or more"
    return _criterion(name, found, requirement, minimum, 1.0, limits.min_comparisons)


def _criterion(
    name: str, found: Measure, requirement: str, low: float, high: float, min_n: int = 0
) -> Criterion:
    """What was reached with too few comparisons counts as not reached."""
    # 0.5 - 0.1 is not quite 0.4, and a rate of exactly 0.4 is allowed.
    reached = found.mean is not None and low - 1e-9 <= found.mean <= high + 1e-9
    return Criterion(
        name,
        found.mean,
        requirement + (f" over at least {min_n} comparisons" if min_n else ""),
        reached and found.n >= min_n,
        found.n,
        found.ci_low,
        found.ci_high,
    )


def _share(count: int, n: int) -> Measure:
    """A share without an interval."""
    return Measure(count / n if n else None, None, None, None, n, 0, 0)
