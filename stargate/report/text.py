"""The report for a terminal: the sections of the page, 100 columns, plain text.

Every line goes through `safe_text`: what a model wrote can't move the cursor or change colours.
"""

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from stargate.monitoring.progress import safe_text
from stargate.report.parts import Part, Row, Table, Wrapped
from stargate.report.records import ReportData
from stargate.report.sections import report_sections
from stargate.report.wording import Level, Sentence

WIDTH = 100
_MARKS: dict[Level, str] = {"good": "+", "bad": "!", "even": "=", "warn": "!", "plain": "-"}


def render_text(data: ReportData) -> str:
    """The whole summary, ending with a newline."""
    parts = [part for section in report_sections(data) for part in section.parts]
    lines = [line for part in parts for line in _part(part)]
    return "\n".join(safe_text(line).rstrip() for line in lines) + "\n"


def _part(part: Part) -> Iterator[str]:
    """Nothing of what is for the page alone."""
    if part.heading:
        yield from ("", part.heading, "-" * min(len(part.heading), WIDTH))
    if part.kind == "lines":
        yield from _lines(part.value)
    elif part.kind == "table":
        yield from _table(part.value)
    elif part.kind == "beside":
        for side in part.value:
            for one in side:
                yield from _part(one)


def _lines(lines: Iterable[Any]) -> Iterator[str]:
    for line in lines:
        if isinstance(line, Sentence):
            yield from _wrapped(line.text, f"{_MARKS[line.level]} ")
        elif isinstance(line, Wrapped):
            yield from _wrapped(line.text, line.mark)
        else:
            yield line


def _table(table: Table) -> Iterator[str]:
    shown = [place for place, column in enumerate(table.columns) if column.width]
    if not shown:
        return
    columns = [table.columns[place] for place in shown]
    if not table.bare:
        heads = (f"{column.brief or column.title:>{column.width}}" for column in columns)
        yield " " * table.label_width + "".join(heads)
    rows, half = table.rows, (table.max_rows or 0) // 2
    if table.max_rows is not None and len(rows) > table.max_rows:
        rows = [*rows[:half], Row(f"  ... {len(rows) - 2 * half} between ..."), *rows[-half:]]
    for row in rows:
        if not row.cells:
            yield row.label
            continue
        width = table.label_width - 2
        line, interval = f"  {_cut(row.label, width):{width}}", ""
        for place, column in zip(shown, columns, strict=True):
            cell = row.cells[place]
            text, interval = cell.brief or (cell.text, "")
            line += f"{text:>{column.width}}"
        yield f"{line}  {interval}"


def _wrapped(text: str, mark: str = "") -> list[str]:
    """Lines of at most WIDTH columns; those after the first stand under the text, not the mark."""
    # Escaped first: an escape takes more columns than the character that it stands for. A number
    # and its percent sign stay on one line.
    clean = safe_text(" ".join(text.split())).replace(" %", "\u00a0%")
    lines = textwrap.wrap(
        clean,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_on_hyphens=False,
    )
    return [line.replace("\u00a0%", " %") for line in lines] or [mark]


def _cut(text: str, width: int) -> str:
    clean = safe_text(" ".join(text.split()))
    return clean if len(clean) <= width else clean[: width - 1] + "\u2026"
