"""The report's section about the judge: how it was qualified, and what it said.

Win rates of an unfit judge are made `void`: they are shown struck through, never left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stargate.evaluation.qualification import Criterion
from stargate.report.parts import Cell, Column, Part, Row, Section, Table, Wrapped
from stargate.report.records import Evaluation, Judge
from stargate.report.wording import DASH, Numbers, format_value

_SHARE = Numbers.usual("share")
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
_RATES = {
    "": "win rate: both orders agree, ties count half",
    "average": "mean of the two orders",
    "candidate_first": "shown first",
    "candidate_second": "shown second",
    "length_controlled": "at equal length",
}
Details = Sequence[Mapping[str, Any]]  # by checkpoint


def judge_section(evaluation: Evaluation, judge: Judge) -> Section:
    """The criteria, then a table per opponent with all that a set of comparisons says."""
    criteria = [_criterion_line(criterion) for criterion in judge.criteria]
    parts = [
        Part(
            "lines",
            [Wrapped(judge.verdict), *criteria],
            heading="Judge" + (f" {judge.model}" if judge.model else ""),
        ),
        Part("verdict", (judge, criteria_table(judge))),
    ]
    for title, table in win_rate_tables(evaluation).items():
        if judge.fit:
            parts.append(Part("table", table, title=title))
        else:
            text = "Struck through, because the judge is unfit."
            parts += [Part("paragraph", text, title=title), Part("table", table)]
    return Section("judge", "The judge", parts)


def _criterion_line(criterion: Criterion) -> str:
    value = "-" if criterion.value is None else f"{criterion.value:.2f}"
    passed = "passed" if criterion.passed else "FAILED"
    return (
        f"  {criterion.name:42}{value:>9}  {passed}, must be {criterion.requirement} "
        f"(n = {criterion.n})"
    )


def criteria_table(judge: Judge) -> Table:
    """What the judge had to reach, and what it reached."""
    rows = []
    for criterion in judge.criteria:
        passed = "passed" if criterion.passed else "failed"
        interval = _SHARE.interval(criterion.ci_low, criterion.ci_high)
        cells = (
            Cell(_SHARE.value(criterion.value), interval, criterion.value),
            Cell(criterion.requirement, tone="requirement", is_number=False),
            Cell(str(criterion.n)),
            Cell(passed, tone=passed, is_number=False),
        )
        rows.append(Row(_CRITERIA.get(criterion.name, criterion.name), cells))
    heads = ("found", "required", "n", "")
    return Table("comparisons with a known answer", [Column(head) for head in heads], rows)


def win_rate_tables(evaluation: Evaluation) -> dict[str, Table]:
    """By opponent; nothing where no comparison was made."""
    void = evaluation.judge is None or evaluation.unfit
    tables = {}
    for key, title in _OPPONENTS.items():
        found = {
            name: detail
            for name in evaluation.checkpoints
            if (detail := evaluation.win_rates.get(name, {}).get(key))
        }
        if found:
            columns, rows = [Column(name) for name in found], [*_rates([*found.values()], void)]
            tables[title] = Table("against m\u2080", columns, rows)
    return tables


def _rates(details: Details, void: bool) -> Iterator[Row]:
    for key, label in _RATES.items():
        rates = [(detail.get(key) if key else detail) or {} for detail in details]
        if any(rates):
            yield Row(label, [_rate_cell(rate, void) for rate in rates])
    bounds = [_SHARE.interval(one.get("lower"), one.get("upper")) or DASH for one in details]
    label = "if all unreadable verdicts had gone one way"
    yield Row(label, [Cell(text, void=void) for text in bounds])
    outcomes = ("wins", "ties", "losses")
    texts = {
        "wins, ties, losses": [
            ", ".join(str(one.get(key, DASH)) for key in outcomes) for one in details
        ],
        "unreadable verdicts": [str(one.get("num_unparsable_verdicts", DASH)) for one in details],
        "both orders agree": [_SHARE.value(one.get("order_consistency")) for one in details],
        "longer than m\u2080's, in tokens": [
            format_value((one.get("length_difference") or {}).get("mean"), "nats", signed=True)
            for one in details
        ],
    }
    for label, found in texts.items():
        yield Row(label, [Cell(text) for text in found])


def _rate_cell(rate: Mapping[str, Any], void: bool) -> Cell:
    mean = rate["mean"] if "mean" in rate else rate.get("rate")
    interval = _SHARE.interval(rate.get("ci_low"), rate.get("ci_high"))
    reason = rate.get("reason") or ""
    if rate.get("extrapolated"):
        reason = "extrapolated: no comparison is on the other side of equal length"
    void = void and mean is not None
    return Cell(_SHARE.value(mean), interval, mean, void=void, hint=reason)
