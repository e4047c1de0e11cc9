"""Prints tables and pairs for people: coloured on a terminal, plain lines elsewhere.

Texts come from data, so their control characters are escaped and nothing in them is markup.
"""

import random
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from stargate.data.dataset import Dataset
from stargate.data.quality import split_counts
from stargate.errors import DataError
from stargate.monitoring.progress import encodable, safe_text
from stargate.types import Pair

# Columns of text where there is no terminal to ask.
_PLAIN_WIDTH = 100
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim", "used": "green"}


class Screen:
    """Where a command prints."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self.is_terminal = self._out.isatty()
        self.width = (
            min(shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns, 120)
            if self.is_terminal
            else _PLAIN_WIDTH
        )

    def line(self, text: str = "", style: str = "") -> None:
        """One line or more; `style` is a key of _STYLES or a style of rich."""
        text = safe_text(text)
        if self.is_terminal and style:
            from rich.console import Console
            from rich.text import Text

            styled = Text(text, style=_STYLES.get(style, style))
            Console(file=self._out, highlight=False).print(styled, soft_wrap=True)
        else:
            print(encodable(text, self._out), file=self._out)

    def wrapped(self, text: str, indent: str, style: str = "") -> None:
        """Text wrapped to the width, its own line breaks kept, each line indented."""
        for part in text.split("\n"):
            for line in textwrap.wrap(safe_text(part), max(20, self.width - len(indent))) or [""]:
                self.line(indent + line, style)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        numbers: frozenset[int] = frozenset(),
    ) -> None:
        """A table; columns whose index is in `numbers` are set to the right. A first cell that is
        a level colours its row.
        """
        cells = [[safe_text(cell).replace("\n", " ") for cell in row] for row in rows]
        if self.is_terminal:
            self._rich_table(columns, cells, numbers)
            return
        widths = [max(len(r[i]) for r in [list(columns), *cells]) for i in range(len(columns))]
        for row in [list(columns), *cells]:
            aligned = (
                cell.rjust(width) if index in numbers else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print(encodable("  ".join(aligned).rstrip(), self._out), file=self._out)

    def _rich_table(
        self, columns: Sequence[str], cells: list[list[str]], numbers: frozenset[int]
    ) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index in numbers else "left")
        for row in cells:
            table.add_row(*map(Text, row), style=_STYLES.get(row[0], ""))
        Console(file=self._out, highlight=False, width=self.width).print(table)


def show_summary(dataset: Dataset, screen: Screen) -> None:
    """Counts per split, and what the loader left out."""
    screen.line(f"dataset: {dataset.name}")
    columns = ("split", "tasks", "plain", "personas", "facts", "pairs", "golds", "without")
    rows = []
    for split, n in split_counts(dataset).items():
        plain, without = n["tasks"] - n["tasks needing a question"], n["pairs"] - n["golds"]
        numbers = (n["tasks"], plain, n["personas"], n["facts"], n["pairs"], n["golds"], without)
        rows.append([split, *map(str, numbers)])
    screen.table(columns, rows, numbers=frozenset(range(1, len(columns))))
    for reason, count in dataset.drop_counts.items():
        screen.line(f"left out by the loader: {count} x {reason}", "warning")


def choose_pairs(
    dataset: Dataset,
    split: str | None = None,
    task: str | None = None,
    persona: str | None = None,
    num: int = 3,
    seed: int = 0,
) -> list[Pair]:
    """`num` pairs at random from those that fit, in the order of the files; pairs with a gold
    first. Raises DataError when none fits.
    """
    for kind, wanted, known in (
        ("split", split, dataset.splits),
        ("task", task, list(dataset.tasks)),
        ("persona", persona, list(dataset.personas)),
    ):
        if wanted is not None and wanted not in known:
            some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise DataError(f"{dataset.name}: no {kind} {wanted!r}; there are: {some}")
    tasks = [t for t in dataset.tasks.values() if split in (None, t.split)]
    tasks = [t for t in tasks if task in (None, t.id)]
    people = [p for p in dataset.personas.values() if persona in (None, p.id)]
    fitting = [(t, p) for t in tasks for p in people if p.split == t.split]
    if not fitting:
        raise DataError(f"{dataset.name}: no pair fits: a pair's task and persona share a split")
    chosen = random.Random(seed).sample(range(len(fitting)), len(fitting))
    chosen.sort(key=lambda index: (fitting[index][0].id, fitting[index][1].id) not in dataset.golds)
    pairs = []
    for index in sorted(chosen[:num]):
        found_task, found_persona = fitting[index]
        gold, used = dataset.golds.get((found_task.id, found_persona.id), (None, ()))
        pairs.append(Pair(found_task, found_persona, gold, used))
    return pairs


def show_pair(pair: Pair, screen: Screen) -> None:
    """One pair: the task, the persona with its facts (* what the gold uses), the gold."""
    task, persona = pair.task, pair.persona
    plain = "" if task.needs_question else ", needs no question"
    screen.line()
    screen.line(f"--- {pair.id} (split {task.split}{plain})", "bold")
    screen.wrapped(f"task: {task.text}", "  ")
    screen.wrapped(f"persona: {persona.name}", "  ")
    screen.wrapped(persona.text, "    ")
    if persona.facts:
        screen.line("  facts (* used by the gold):" if pair.gold_facts else "  facts:")
    for number, fact in enumerate(persona.facts):
        used = number in pair.gold_facts
        lines = textwrap.wrap(safe_text(fact), max(20, screen.width - 10)) or [""]
        for place, line in enumerate(lines):
            lead = f"   {'*' if used else ' '}{number:>3}  " if place == 0 else " " * 9
            screen.line(lead + line, "used" if used else "")
    screen.line("  gold:" if pair.gold is not None else "  gold: none")
    if pair.gold is not None:
        screen.wrapped(pair.gold, "    ")
