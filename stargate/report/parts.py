"""What a report is made of: sections of parts, which page.py and text.py lay out each in its way.

    kind        value                 page  terminal
    opening     Opening                x
    lines       [str | Wrapped | Sentence]     x      a plain str is written as it is
    table       Table                  x       x      if it has columns there
    paragraph   str                    x
    sentences   [Sentence]             x
    figures     [Plot]                 x
    amounts     [(name, text)]         x
    verdict     (Judge, Table)         x
    fold        (summary, [Part])      x
    pre         str                    x
    beside      [[Part], [Part]]       x       x      in two columns of the page
    browser     str                    x

Texts are as they were written: the page escapes markup, the terminal control characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stargate.evaluation.catalog import Unit
from stargate.evaluation.statistics import Measure
from stargate.report.wording import DASH, Numbers, direction, format_value


@dataclass(frozen=True, slots=True)
class Part:
    """`title` stands over it on the page, with a `note`, and `heading` in the terminal."""

    kind: str
    value: Any
    title: str = ""
    note: str = ""
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Without an id it is not on the page; `link` is its name in the page's bar. The terminal shows
    its parts alone.
    """

    id: str
    title: str
    parts: Sequence[Part]
    lede: str = ""
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


@dataclass(frozen=True, slots=True)
class Opening:
    """The question that a page answers, and the answer in large letters with its numbers."""

    question: str
    answer: str
    figures: str = ""
    tiles: Sequence[Tile] = ()


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A text that may need several lines of the terminal, with a mark before the first."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """`value` is what its column is sorted by, None where there is nothing; `tone` is "up", "down"
    or another class of the style; `void` marks a number that must not be believed. `brief` are
    text and interval for the terminal where they differ from the page's.
    """

    text: str
    interval: str = ""
    value: float | None = None
    tone: str = ""
    void: bool = False
    hint: str = ""
    is_number: bool = True
    brief: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; without cells it is the title of those below it.

    `link` is a filter of the dialogue browser ("task=week-meals"), `meter` a bar in percent.
    """

    label: str
    cells: Sequence[Cell] = ()
    tone: str = ""
    sentence: str = ""  # what the label means
    note: str = ""
    examples: Sequence[str] = ()
    link: str = ""
    meter: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """`width` is the terminal's, 0 where it does not show the column; `brief` is its title there,
    if it is another one.
    """

    title: str
    width: int = 0
    brief: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """`label` heads the rows' labels on the page, `over` stands above equal groups of columns;
    `region` names a table to move about in. The terminal shows no heads if it is `bare`, and of
    more than `max_rows` rows as many, from both ends.
    """

    label: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    over: Sequence[str] = ()
    style: str = ""
    region: str = ""
    label_width: int = 44
    bare: bool = False
    max_rows: int | None = None


def plain_cell(value: float | None, unit: Unit, *, signed: bool = False) -> Cell:
    """A number on its own; a signed one is coloured by its sign."""
    text = format_value(value, unit, signed=signed)
    tone = {"+": "up", "\u2212": "down"}.get(text[0], "") if signed else ""
    return Cell(text, value=value, tone=tone)


def measured_cell(
    measure: Measure | None,
    numbers: Numbers,
    *,
    signed: bool = False,
    more_is_better: bool | None = None,
    void: bool = False,
) -> Cell:
    """A mean with its interval. A signed one is a change: it is coloured where its interval leaves
    no doubt about the sign, if more is better or worse.
    """
    if measure is None or measure.mean is None:
        return Cell(DASH)
    low, high = measure.ci_low, measure.ci_high
    usual = Numbers.usual(numbers.unit)
    way = direction(measure) if signed and not void and more_is_better is not None else None
    error, why = measure.standard_error, measure.why_no_interval
    spread = "no plain standard error"
    if error is not None:
        spread = f"plain standard error {numbers.bare(error)}"
    return Cell(
        numbers.value(measure.mean, signed=signed),
        numbers.interval(low, high, signed=signed),
        measure.mean,
        tone=("up" if (way > 0) == more_is_better else "down") if way else "",
        void=void,
        hint=f"{observed(measure)}, {spread}" + (f"; no interval: {why}" if why else ""),
        brief=(
            usual.value(measure.mean, signed=signed),
            usual.interval(low, high, signed=True) if signed else "",
        ),
    )


def observed(measure: Measure) -> str:
    """What stands behind a mean."""
    return f"n = {measure.n:,}, {measure.clusters}"
