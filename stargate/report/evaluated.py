"""The report's sections about an evaluation: the answer, all measures, where it changed, others."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Literal
from urllib.parse import quote

from stargate.evaluation.catalog import in_order, measure_info
from stargate.evaluation.statistics import Measure
from stargate.report.breakdown import BreakdownRow, breakdown
from stargate.report.drawing import Plot
from stargate.report.findings import HEADLINE, SKILL, Answer, answer, headline_of
from stargate.report.parts import (
    Cell,
    Column,
    Opening,
    Part,
    Row,
    Section,
    Table,
    Tile,
    Wrapped,
    measured_cell,
    plain_cell,
)
from stargate.report.records import DialogueView, Evaluation, ReportData
from stargate.report.wording import (
    DASH,
    Numbers,
    Sentence,
    confidence,
    direction,
    format_value,
    unit_of,
)

# Tiles of the answer, beside that of skill, and how many there is room for.
_TILES = (HEADLINE, "facts_per_dialogue", "fact_coverage", "question_rate")
_MAX_TILES = 4
# What is shown of an evaluation beside others.
_COMPARED = (HEADLINE, "facts_per_dialogue")
_WIDTH = 9  # of a column of numbers in the terminal
# Columns of checkpoints that fit there beside the change.
_MAX_CHECKPOINTS = 3
# Rows per breakdown there: the largest gains and the largest losses; the page has all.
_MAX_ROWS = 12


def opening_section(data: ReportData, found: Answer) -> Section:
    """The verdict in large letters, the figures behind it, and what else there is to say."""
    verdict, colon, figures = found.headline.partition(": ")
    skilled = data.main is not None and headline_of(data.main) == SKILL
    opening = Opening(
        "Does it ask better than a questionnaire?"
        if skilled
        else "Did it get better at learning about the person?",
        f"{verdict}." if colon else verdict,
        figures[:1].upper() + figures[1:],
        [*islice(tiles(data.main), _MAX_TILES)] if data.main else (),
    )
    lines = [f"{data.name}: {data.status}", "", Wrapped(found.headline)]
    lines += ["", *found.sentences] if found.sentences else []
    moved = [Part("sentences", found.sentences, title="What else moved")]
    doubts = [Part("sentences", found.caveats, title="What to keep in mind")]
    sides = [side for side in (moved, doubts) if side[0].value]
    parts = [
        Part("opening", opening),
        Part("beside", sides),
        Part("lines", [*lines, *found.origins]),
    ]
    if found.caveats:
        parts.append(Part("lines", found.caveats, heading="Caveats"))
    return Section("answer", "", parts, link="Answer")


def tiles(evaluation: Evaluation) -> Iterator[Tile]:
    """How far the last checkpoint is from m_0; the first checkpoint's values where it is alone."""
    first, last = evaluation.first, evaluation.last
    if skill := evaluation.measure(last, SKILL):
        yield _skill_tile(evaluation, skill)
    for name in _TILES:
        info, before = measure_info(name), evaluation.measure(first, name)
        if info is None or before is None:
            continue
        label = info.label[0].upper() + info.label[1:]
        unit_words = "nats" if info.unit == "nats" else ""
        change = evaluation.change(last, name)
        numbers = Numbers.of(change or before, info.unit)
        if change is None:
            cell = measured_cell(before, numbers)
            yield Tile(label, cell.text, unit_words, cell.interval, f"at {first}", "")
            continue
        cell = _change_cell(evaluation, name, numbers)
        note = f"{first}: {numbers.value(before.mean)}"
        if after := evaluation.measure(last, name):
            note += f" \u2192 {last}: {numbers.value(after.mean)}"
        interval = cell.interval or f"no interval: {change.why_no_interval}"
        value, _, suffix = cell.text.partition(" ")
        note = note.replace(" %", "\u00a0%")  # never alone on the next line
        yield Tile(label, value, unit_words or suffix, interval, note, cell.tone)


def _skill_tile(evaluation: Evaluation, skill: Measure) -> Tile:
    """The last checkpoint's, with m_0's beside it: 0 is a questionnaire, not m_0."""
    numbers = Numbers.of(skill, unit_of(SKILL))
    cell = measured_cell(skill, numbers)
    note = f"at {evaluation.last}"
    before = evaluation.measure(evaluation.first, SKILL)
    if before is not None and evaluation.first != evaluation.last:
        note += f"; {evaluation.first}: {numbers.value(before.mean)}"
    tone = {1: "up", -1: "down"}.get(direction(skill) or 0, "")
    interval = cell.interval or f"no interval: {skill.why_no_interval}"
    return Tile("Skill", cell.text, "", interval, note, tone)


def measures_section(evaluation: Evaluation) -> Section:
    about, spread = evaluation.about, f"{confidence(evaluation)} interval"
    heading = f"Measures on {evaluation.name} (change with its {spread})"
    lines = []
    if about is not None:
        lines.append(f"data {about.data}, split {about.split}, {about.of_pair}")
    measure = evaluation.measure(evaluation.last, HEADLINE) or evaluation.measure(
        evaluation.last, "facts_per_dialogue"
    )
    counts = ""
    if measure is not None:
        counts = f"{measure.n:,} dialogues per checkpoint: {measure.clusters}."
    return Section(
        "measures",
        "All measures and controls",
        [Part("lines", lines, heading=heading), Part("table", measures_table(evaluation))],
        lede=f"{counts} Numbers that leave no doubt about their direction are coloured. A "
        "measure\u2019s name unfolds what it means.",
        link="Measures",
    )


def measures_table(evaluation: Evaluation) -> Table:
    """All measures by checkpoint, and how far the last one is from m_0."""
    checkpoints, last = evaluation.checkpoints, evaluation.last
    shown = {*checkpoints[:1], *checkpoints[1 - _MAX_CHECKPOINTS :]}
    columns = [Column(name, _WIDTH if name in shown else 0) for name in checkpoints]
    compared = len(checkpoints) > 1 and bool(evaluation.changes.get(last))
    if compared:
        columns.append(Column(f"{last} \u2212 {evaluation.first}", _WIDTH))
    rows: list[Row] = []
    for title, infos in groupby(in_order(evaluation.names), key=lambda info: info.group):
        rows.append(Row(title, tone="group"))
        for info in infos:
            cells = _measure_cells(evaluation, info.name, checkpoints, "" if compared else None)
            tone = "headline" if info.name == headline_of(evaluation) else ""
            rows.append(Row(info.label, cells, tone, info.sentence))
    return Table(
        "95 % intervals in small",
        columns,
        rows,
        style="measures",
        region="All measures by checkpoint",
    )


def _measure_cells(
    evaluation: Evaluation, name: str, checkpoints: Sequence[str], without_change: str | None
) -> list[Cell]:
    """A measure at each checkpoint, then its change, or the text that stands where there is none.

    As many decimals everywhere as the most certain value deserves. No change if the text is None.
    """
    values = [evaluation.measure(checkpoint, name) for checkpoint in checkpoints]
    change = evaluation.change(evaluation.last, name)
    known = [*filter(None, [*values, change])]
    numbers = Numbers.of_all(known, unit_of(name))
    void = _is_void(evaluation, name)
    cells = [measured_cell(value, numbers, void=void) for value in values]
    if change:
        cells.append(_change_cell(evaluation, name, numbers))
    elif without_change is not None:
        cells.append(Cell(without_change))
    return cells


def _change_cell(evaluation: Evaluation, name: str, numbers: Numbers) -> Cell:
    info, change = measure_info(name), evaluation.change(evaluation.last, name)
    return measured_cell(
        change,
        numbers,
        signed=True,
        more_is_better=info.more_is_better if info else None,
        void=_is_void(evaluation, name),
    )


def _is_void(evaluation: Evaluation, name: str) -> bool:
    return evaluation.unfit and name.startswith("win_rate")


def origin_section(found: Answer, plots: Sequence[Plot]) -> Section:
    parts = [Part("sentences", found.origins)] if found.origins else []
    parts += [Part("figures", plots)] if plots else []
    return Section("origin", "Where the gain came from", parts)


def where_section(data: ReportData, evaluation: Evaluation) -> Section:
    by: tuple[Literal["task", "persona"], ...] = ("task", "persona")
    tables = {what: breakdown(data, evaluation, what) for what in by}
    return Section(
        "where",
        "By task and by persona",
        [
            Part(
                "table",
                _breakdown_table(evaluation, what, rows),
                heading=f"By {what}: matched minus shuffled (nats), facts elicited",
            )
            for what, rows in tables.items()
            if rows
        ],
        lede="Means over pairs, without intervals: single tasks and personas have too few "
        "dialogues for one. A name leads to its dialogues.",
        link="Where",
    )


def _breakdown_table(evaluation: Evaluation, what: str, rows: Sequence[BreakdownRow]) -> Table:
    first, last = evaluation.first, evaluation.last
    names = (first, last, "change") if first != last else (first,)
    units: tuple[Literal["nats", "count"], ...] = ("nats", "count")
    lines = []
    for row in rows:
        cells = [Cell(f"{row.num_pairs:,}", value=row.num_pairs)]
        for unit, shift in zip(units, (row.matched_minus_shuffled, row.facts), strict=True):
            values = (shift.before, shift.after, shift.change)[: len(names)]
            cells += [plain_cell(value, unit, signed=i == 2) for i, value in enumerate(values)]
        link = f"source={evaluation.source}&{what}={quote(row.id, safe='')}"
        lines.append(Row(row.label, cells, link=link))
    return Table(
        what,
        [Column("pairs", 6), *(Column(name, _WIDTH) for name in (*names, *names))],
        lines,
        over=("matched \u2212 shuffled, nats", "facts elicited"),
        style="sortable breakdown",
        region=f"By {what}",
        label_width=40,
        max_rows=_MAX_ROWS,
    )


def other_sections(data: ReportData, main: Evaluation) -> tuple[list[Section], list[Section]]:
    """What the evaluations beside the main one say: for the terminal a section each, and for the
    page one that compares them all.
    """
    measured = [entry for entry in data.evaluations if entry.measures]
    others = [entry for entry in measured if entry is not main]
    if not others:
        return [], []
    said = [Section("", "", [_said(data, entry)]) for entry in others]
    names = [name.replace("_", " ") for name in _COMPARED]
    titles = [Column(title) for _ in names for title in ("first", "last", "change")]
    rows = [
        Row(
            entry.name,
            [
                cell
                for name in _COMPARED
                for cell in _measure_cells(entry, name, (entry.first, entry.last), DASH)
            ],
        )
        for entry in measured
    ]
    heads = ("data", "checkpoints", "Roleplayer in the test", "Roleplayer in training")
    made = []
    for entry in (main, *others):
        texts = [(DASH, ""), (", ".join(entry.checkpoints), ""), (DASH, ""), (DASH, "")]
        if (about := entry.about) is not None:
            texts[0] = (f"{about.data} ({about.split})", "")
            texts[2:] = [
                (user.model, user.ways)
                for user in (about.roleplayer, about.trained_with_roleplayer)
            ]
        cells = [Cell(text, below, is_number=False) for text, below in texts]
        made.append(Row(entry.name, cells))
    parts = [
        Part("table", Table("evaluation", titles, rows, over=names)),
        Part("table", Table("evaluation", [Column(head) for head in heads], made)),
        *(
            Part("fold", (f"All measures of {one.name}", [Part("table", measures_table(one))]))
            for one in others
        ),
    ]
    lede = f"The same checkpoints with another simulated user or on other data, beside {main.name}."
    return said, [Section("others", "Other evaluations", parts, lede=lede)]


def _said(data: ReportData, evaluation: Evaluation) -> Part:
    found, about = answer(data, evaluation), evaluation.about
    lines: list[Wrapped | Sentence] = []
    if about is not None:
        user = about.roleplayer
        details = f"Roleplayer {user.model} ({user.ways})"
        lines.append(Wrapped(f"data {about.data}; {details}"))
    lines += [Wrapped(found.headline), *found.sentences]
    return Part("lines", lines, heading=f"Evaluation {evaluation.name}")


def example_section(data: ReportData, evaluation: Evaluation) -> Section:
    """The dialogue with the median change, before and after: neither the best nor the worst."""
    scored: dict[str, dict[tuple[str, int], tuple[float, DialogueView]]] = {}
    for dialogue in data.dialogues:
        value = dialogue.matched_minus_shuffled
        if dialogue.source == evaluation.source and value is not None:
            of_checkpoint = scored.setdefault(dialogue.checkpoint, {})
            of_checkpoint[dialogue.pair.id, dialogue.index] = value, dialogue
    before, after = scored.get(evaluation.first, {}), scored.get(evaluation.last, {})
    changes = sorted((after[key][0] - before[key][0], key) for key in before if key in after)
    if not changes or evaluation.first == evaluation.last:
        return Section("", "", [])
    _, key = changes[len(changes) // 2]
    lines = [*_read_aloud(*before[key]), *_read_aloud(*after[key])]
    heading = "The dialogue with the median change of matched minus shuffled"
    return Section("", "", [Part("lines", lines, heading=heading)])


def _read_aloud(value: float, dialogue: DialogueView) -> Iterator[Wrapped]:
    pair = dialogue.pair
    score = format_value(value, "nats", signed=True)
    yield Wrapped(f"{dialogue.checkpoint}, {pair.persona.name}: {pair.task.text} ({score} nats)")
    for turn in dialogue.turns:
        gain = "" if turn.gain is None else f" [{turn.gain:+.1f} nats]"
        facts = f" (facts {', '.join(map(str, turn.elicited))})" if turn.elicited else ""
        yield Wrapped(f"Questioner: {turn.question}{gain}", "  ")
        yield Wrapped(f"Roleplayer: {turn.answer}{facts}", "  ")
