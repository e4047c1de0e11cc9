"""The judge's tables of the HTML report: how it was qualified, and what it said.

Win rates of an unfit judge are made `void`: they are shown struck through, never left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stargate.evaluation.qualification import Criterion
from stargate.report.measures import format_interval, format_value
from stargate.report.records import Evaluation, Judge
from stargate.report.tables import Cell

_CRITERIA = {
    "self_rate": "m\u2080 against itself: neither wins",
    "self_first_shown": "m\u2080 against itself: no position wins",
    "gold_rate": "the gold beats m\u2080",
    "praise_rate": "m\u2080 beats empty praise",
    "shuffled_rate": "the answer for this person beats one for another",
    "order_consistency": "both orders agree",
    "unparsable_rate": "unreadable verdicts",
}
_OPPONENTS = {
    "win_rate_details": "Own dialogue, own response",
    "win_rate_fixed_responder_details": "Own dialogue, m\u2080 responds for both",
}
# Rates in a WinRate's JSON, with what they are.
_RATES = (
    ("", "win rate: both orders agree, ties count half"),
    ("average", "mean of the two orders"),
    ("candidate_first", "shown first"),
    ("candidate_second", "shown second"),
    ("length_controlled", "at equal length"),
)


@dataclass(frozen=True, slots=True)
class CriterionLine:
    label: str
    found: Cell
    requirement: str
    n: int
    passed: bool


@dataclass(frozen=True, slots=True)
class RateLine:
    label: str
    cells: tuple[Cell, ...]  # by checkpoint


@dataclass(frozen=True, slots=True)
class WinRateTable:
    title: str
    checkpoints: tuple[str, ...]
    lines: tuple[RateLine, ...]


def judge_lines(judge: Judge) -> tuple[CriterionLine, ...]:
    """What the judge had to reach, and what it reached."""
    return tuple(_criterion_line(criterion) for criterion in judge.criteria)


def _criterion_line(criterion: Criterion) -> CriterionLine:
    return CriterionLine(
        _CRITERIA.get(criterion.name, criterion.name),
        Cell(
            format_value(criterion.value, "share"),
            format_interval(criterion.ci_low, criterion.ci_high, "share"),
            criterion.value,
        ),
        criterion.requirement,
        criterion.n,
        criterion.passed,
    )


def win_rate_tables(evaluation: Evaluation) -> tuple[WinRateTable, ...]:
    """One table per opponent, with all that a set of comparisons says."""
    return tuple(_win_rate_tables(evaluation))


def _win_rate_tables(evaluation: Evaluation) -> Iterator[WinRateTable]:
    void = evaluation.judge is None or not evaluation.judge.fit
    for key, title in _OPPONENTS.items():
        found = {
            name: detail
            for name in evaluation.checkpoints
            if (detail := evaluation.win_rates.get(name, {}).get(key))
        }
        if found:
            details = tuple(found.values())
            yield WinRateTable(title, tuple(found), tuple(_rate_lines(details, void)))


def _rate_lines(details: tuple[Mapping[str, Any], ...], void: bool) -> Iterator[RateLine]:
    for key, label in _RATES:
        rates = [detail.get(key) if key else detail for detail in details]
        if any(rates):
            yield RateLine(label, tuple(_rate_cell(rate or {}, void) for rate in rates))
    yield RateLine("if all unreadable verdicts had gone one way", _texts(details, _bounds, void))
    yield RateLine("wins, ties, losses", _texts(details, _outcomes, False))
    yield RateLine("unreadable verdicts", _texts(details, _unparsable, False))
    yield RateLine("both orders agree", _texts(details, _consistency, False))
    yield RateLine("longer than m\u2080's, in tokens", _texts(details, _longer, False))


def _rate_cell(rate: Mapping[str, Any], void: bool) -> Cell:
    mean = rate["mean"] if "mean" in rate else rate.get("rate")
    interval = format_interval(rate.get("ci_low"), rate.get("ci_high"), "share")
    reason = rate.get("reason") or ""
    if rate.get("extrapolated"):
        reason = "extrapolated: no comparison is on the other side of equal length"
    return Cell(
        format_value(mean, "share"), interval, mean, void=void and mean is not None, hint=reason
    )


def _texts(details: tuple[Mapping[str, Any], ...], text: Any, void: bool) -> tuple[Cell, ...]:
    return tuple(Cell(text(detail), void=void) for detail in details)


def _bounds(detail: Mapping[str, Any]) -> str:
    return format_interval(detail.get("lower"), detail.get("upper"), "share") or "\u2013"


def _outcomes(detail: Mapping[str, Any]) -> str:
    return ", ".join(str(detail.get(key, "\u2013")) for key in ("wins", "ties", "losses"))


def _unparsable(detail: Mapping[str, Any]) -> str:
    return str(detail.get("num_unparsable_verdicts", "\u2013"))


def _consistency(detail: Mapping[str, Any]) -> str:
    return format_value(detail.get("order_consistency"), "share")


def _longer(detail: Mapping[str, Any]) -> str:
    difference = detail.get("length_difference") or {}
    return format_value(difference.get("mean"), "nats", signed=True)
