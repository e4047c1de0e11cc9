"""The tables of the HTML report as plain rows of text: what the template has only to lay out.

    Evaluation.measures, changes -> measures_table   all measures by checkpoint
    breakdown.py                 -> breakdown_lines  by task or by persona
    Evaluation                   -> tiles            the large numbers of the answer

A cell's `value` is what its column is sorted by, None where there is nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import quote

from stargate.evaluation.statistics import Measure
from stargate.report.breakdown import BreakdownRow, Shift
from stargate.report.findings import HEADLINE
from stargate.report.measures import (
    MeasureInfo,
    Unit,
    format_value,
    in_order,
    measure_info,
)
from stargate.report.records import Evaluation
from stargate.report.wording import Numbers


@dataclass(frozen=True, slots=True)
class Cell:
    """`tone` is "up", "down" or ""; `void` marks a number that must not be believed."""

    text: str
    interval: str = ""
    value: float | None = None
    tone: str = ""
    void: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class MeasureRow:
    info: MeasureInfo
    cells: tuple[Cell, ...]  # by checkpoint
    change: Cell | None
    headline: bool


@dataclass(frozen=True, slots=True)
class MeasureGroup:
    title: str
    rows: tuple[MeasureRow, ...]


@dataclass(frozen=True, slots=True)
class MeasuresTable:
    """`counts` says over how many observations and clusters the headline goes, in words."""

    checkpoints: tuple[str, ...]
    change_label: str | None
    groups: tuple[MeasureGroup, ...]
    counts: str


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a plain table. `link` is a filter of the dialogue browser ("task=week-meals")."""

    label: str
    cells: tuple[Cell, ...]
    link: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One large number of the answer, how sure it is, and where it went from and to."""

    label: str
    value: str
    unit: str
    interval: str
    note: str
    tone: str


def measures_table(evaluation: Evaluation) -> MeasuresTable | None:
    """All measures of an evaluation, or None where nothing was measured."""
    if not any(evaluation.measures.values()):
        return None
    checkpoints = evaluation.checkpoints
    last = evaluation.last if len(checkpoints) > 1 else None
    unfit = evaluation.judge is not None and not evaluation.judge.fit
    names = {name for measures in evaluation.measures.values() for name in measures}
    rows = [_measure_row(evaluation, info, last, unfit) for info in in_order(names)]
    groups = tuple(
        MeasureGroup(title, tuple(members))
        for title, members in groupby(rows, key=lambda row: row.info.group)
    )
    label = f"{last} \u2212 {checkpoints[0]}" if last and evaluation.changes.get(last) else None
    return MeasuresTable(checkpoints, label, groups, _counts(evaluation))


def _measure_row(
    evaluation: Evaluation, info: MeasureInfo, last: str | None, unfit: bool
) -> MeasureRow:
    void = unfit and info.name.startswith("win_rate")
    found = [evaluation.measures.get(name, {}).get(info.name) for name in evaluation.checkpoints]
    change = evaluation.change(last, info.name)
    known = [measure for measure in found if measure is not None]
    numbers = _numbers([*known, *([change.difference] if change else [])], info.unit)
    return MeasureRow(
        info,
        tuple(_measure_cell(measure, numbers, void=void) for measure in found),
        None if change is None else _change_cell(change.difference, info, numbers, void=void),
        info.name == HEADLINE,
    )


def _numbers(measures: Sequence[Measure], unit: Unit) -> Numbers:
    """As many decimals as the most certain of them deserves, so that a row lines up."""
    return Numbers(unit, max((Numbers.of(measure, unit).digits for measure in measures), default=0))


def _measure_cell(measure: Measure | None, numbers: Numbers, *, void: bool = False) -> Cell:
    if measure is None or measure.mean is None:
        return Cell("\u2013")
    return Cell(
        numbers.value(measure.mean),
        numbers.interval(measure),
        measure.mean,
        void=void,
        hint=_hint(measure, numbers),
    )


def _change_cell(
    measure: Measure, info: MeasureInfo, numbers: Numbers, *, void: bool = False
) -> Cell:
    tone = _tone(measure, info.more_is_better) if info.more_is_better is not None else ""
    points = " pp" if numbers.unit == "share" else ""
    return Cell(
        numbers.bare(measure.mean or 0.0, signed=True) + points,
        numbers.interval(measure, signed=True),
        measure.mean,
        tone="" if void else tone,
        void=void,
        hint=_hint(measure, numbers),
    )


def _tone(measure: Measure, more_is_better: bool) -> str:
    """Coloured only where the interval leaves no doubt about the sign."""
    if measure.ci_low is None or measure.ci_high is None or measure.ci_low <= 0 <= measure.ci_high:
        return ""
    return "up" if (measure.ci_low > 0) == more_is_better else "down"


def _hint(measure: Measure, numbers: Numbers) -> str:
    """What stands behind a mean, shown on hover."""
    if measure.standard_error is None:
        error = "no plain standard error"
    else:
        error = f"plain standard error {numbers.bare(measure.standard_error)}"
    clusters = f"{measure.task_clusters} tasks \u00d7 {measure.persona_clusters} personas"
    hint = f"n = {measure.n:,}, {clusters}, {error}"
    return f"{hint}; no interval: {measure.why_no_interval}" if measure.why_no_interval else hint


def _counts(evaluation: Evaluation) -> str:
    measure = evaluation.measure(evaluation.last, HEADLINE) or evaluation.measure(
        evaluation.last, "facts_per_dialogue"
    )
    if measure is None:
        return ""
    return (
        f"{measure.n:,} dialogues per checkpoint: {measure.task_clusters} tasks \u00d7 "
        f"{measure.persona_clusters} personas."
    )


def compared(evaluation: Evaluation) -> tuple[str, ...]:
    """m_0 and the last checkpoint; one of them where there is only one."""
    both = (evaluation.first, evaluation.last)
    return tuple(dict.fromkeys(name for name in both if name is not None))


def breakdown_lines(rows: Iterable[BreakdownRow], by: str, *, changes: bool) -> tuple[Line, ...]:
    """Without intervals: single tasks and personas have too few dialogues for one."""
    return tuple(
        Line(
            row.label,
            (
                _number(row.num_pairs),
                *_shift_cells(row.matched_minus_shuffled, "nats", changes),
                *_shift_cells(row.facts, "count", changes),
            ),
            f"{by}={quote(row.id, safe='')}",
        )
        for row in rows
    )


def _shift_cells(shift: Shift, unit: Unit, changes: bool) -> list[Cell]:
    before = plain_cell(shift.before, unit)
    if not changes:
        return [before]
    return [before, plain_cell(shift.after, unit), plain_cell(shift.change, unit, signed=True)]


def plain_cell(value: float | None, unit: Unit, *, signed: bool = False) -> Cell:
    """A number on its own; a signed one is coloured by its sign."""
    text = format_value(value, unit, signed=signed)
    tone = {"+": "up", "\u2212": "down"}.get(text[0], "") if signed else ""
    return Cell(text, value=value, tone=tone)


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", value=value)


# Tiles of the answer: measure, label, unit in words.
_TILES: tuple[tuple[str, str, str], ...] = (
    (HEADLINE, "Matched minus shuffled", "nats"),
    ("facts_per_dialogue", "Facts elicited per dialogue", ""),
    ("fact_coverage", "The gold\u2019s facts elicited", ""),
    ("question_rate", "Turns that are a question", ""),
)


def tiles(evaluation: Evaluation) -> tuple[Tile, ...]:
    """How far the last checkpoint is from m_0; the first checkpoint's values where it is alone."""
    made = [_tile(evaluation, *said) for said in _TILES]
    return tuple(tile for tile in made if tile is not None)


def _tile(evaluation: Evaluation, name: str, label: str, unit_words: str) -> Tile | None:
    info = measure_info(name)
    before = evaluation.measure(evaluation.first, name)
    if info is None or before is None:
        return None
    change = evaluation.change(evaluation.last, name)
    if change is None:
        cell = _measure_cell(before, Numbers.of(before, info.unit))
        return Tile(label, cell.text, unit_words, cell.interval, f"at {evaluation.first}", "")
    numbers = Numbers.of(change.difference, info.unit)
    cell = _change_cell(change.difference, info, numbers)
    note = f"{evaluation.first}: {numbers.value(before.mean or 0.0)}"
    after = evaluation.measure(evaluation.last, name)
    if after is not None and after.mean is not None:
        note += f" \u2192 {evaluation.last}: {numbers.value(after.mean)}"
    interval = cell.interval or f"no interval: {change.difference.why_no_interval}"
    value, _, suffix = cell.text.partition(" ")
    note = note.replace(" %", "\u00a0%")  # never alone on the next line
    return Tile(label, value, unit_words or suffix, interval, note, cell.tone)


def other_evaluations(evaluations: Iterable[Evaluation]) -> tuple[Line, ...]:
    """Each evaluation with two measures: at m_0, at the last checkpoint, and the change."""
    return tuple(Line(entry.name, _evaluation_cells(entry)) for entry in evaluations)


# What is shown of an evaluation beside others.
COMPARED_MEASURES = (HEADLINE, "facts_per_dialogue")


def _evaluation_cells(evaluation: Evaluation) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for name in COMPARED_MEASURES:
        info = measure_info(name)
        if info is None:
            continue
        found = [
            evaluation.measure(checkpoint, name)
            for checkpoint in (evaluation.first, evaluation.last)
        ]
        change = evaluation.change(evaluation.last, name)
        known = [measure for measure in found if measure is not None]
        numbers = _numbers([*known, *([change.difference] if change else [])], info.unit)
        cells += [_measure_cell(measure, numbers) for measure in found]
        cells.append(
            Cell("\u2013") if change is None else _change_cell(change.difference, info, numbers)
        )
    return tuple(cells)
