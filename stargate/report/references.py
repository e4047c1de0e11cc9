"""The report's section about what nobody learned: reference rows beside the checkpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from stargate.evaluation.references import COLUMNS, ROWS
from stargate.evaluation.statistics import Measure
from stargate.report.parts import Cell, Column, Part, Row, Section, Table, Wrapped, measured_cell
from stargate.report.records import Evaluation
from stargate.report.wording import Numbers, confidence, unit_of

# Rows by name: how they are called here, and what they are.
_ROWS = {
    "none": (
        "no dialogue",
        "The opening alone: how well the base model guesses a gold when nobody asked anything.",
    ),
    "own_frequent": (
        "own frequent questions",
        "The questions that the last checkpoint asks most, asked of everybody.",
    ),
    "random_facts": (
        "random facts told",
        "Facts of the person that were drawn by chance, told without a question.",
    ),
    "constant": (
        "best list for everybody",
        "The questions, the same for everybody, that bring out most of what the golds of the "
        "training splits use. Skill is 0 here.",
    ),
    "per_task": (
        "best list per task",
        "The questions that are best for each task, chosen on the test golds themselves: the most "
        "that asking by the task alone can bring.",
    ),
    "gold_facts": (
        "gold facts told",
        "Facts that the gold uses, told without a question: nobody can ask for better. Skill is 1 "
        "here.",
    ),
}
_LABEL_WIDTH, _WIDTH = 28, 24


def reference_section(evaluation: Evaluation) -> Section:
    """Without parts where the evaluation has no reference rows."""
    title, rows = "What nobody learned", evaluation.references
    if not rows:
        return Section("references", title, [])
    interval = f"{confidence(evaluation)} interval"
    parts = [
        Part("table", _table(evaluation), heading=f"{title} (with {interval}s)"),
        *_questions(evaluation),
    ]
    lede = (
        "Dialogues that no training made, of the same pairs, below them the checkpoints. Skill is "
        "where a checkpoint\u2019s contrast stands between the best list for everybody (0) and "
        "told gold facts (1). A row\u2019s name unfolds what it is."
    )
    return Section("references", title, parts, lede=lede, link="References")


def _table(evaluation: Evaluation) -> Table:
    found = [evaluation.references[name] for name in ROWS if name in evaluation.references]
    checkpoints = evaluation.checkpoints
    measures = [row.measures for row in found]
    measures += [evaluation.measures[checkpoint] for checkpoint in checkpoints]
    # As many decimals in a column as the most certain of its numbers deserves.
    numbers = {
        name: Numbers.of_all(filter(None, (one.get(name) for one in measures)), unit_of(name))
        for name in COLUMNS
    }
    rows = []
    for row in found:
        label, sentence = _ROWS[row.name]
        rows.append(Row(label, _cells(row.measures, numbers), sentence=sentence))
    rows.append(Row("Checkpoints", tone="group"))
    rows += [
        Row(
            checkpoint,
            _cells(evaluation.measures[checkpoint], numbers),
            "headline" if checkpoint == evaluation.last else "",
        )
        for checkpoint in checkpoints
    ]
    return Table(
        f"{confidence(evaluation)} intervals in small",
        [Column(title, _WIDTH) for title in COLUMNS.values()],
        rows,
        style="measures",
        region="Reference rows and checkpoints",
        label_width=_LABEL_WIDTH,
    )


def _cells(measures: Mapping[str, Measure], numbers: Mapping[str, Numbers]) -> list[Cell]:
    """In the terminal, too, with their intervals."""
    cells = []
    for name, written in numbers.items():
        cell = measured_cell(measures.get(name), written)
        interval = f" [{cell.interval}]" if cell.interval else ""
        cells.append(replace(cell, brief=(cell.text + interval, "")))
    return cells


def _questions(evaluation: Evaluation) -> Iterator[Part]:
    """What the rows ask that ask everybody the same."""
    lines: list[str | Wrapped] = [""]
    for name in ("constant", "own_frequent"):
        row = evaluation.references.get(name)
        if row is None or not row.questions:
            continue
        label, asked = _ROWS[name][0], " ".join(row.questions)
        yield Part("paragraph", asked, title=f"{label[0].upper()}{label[1:]}")
        lines.append(Wrapped(f"{label}: {asked}", "  "))
    if lines[1:]:
        yield Part("lines", lines)
