"""An ablation's report: one HTML file without scripts or network, and the same for a terminal.

    ablation.json -> tables (one per measure: conditions as rows) -> lines, page

Three numbers per condition: its last checkpoint; that minus m_0; that minus the reference
condition's. The last two are paired over pairs, so what makes a pair easy cancels out.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from stargate.evaluation.catalog import MeasureInfo, in_order, measure_info
from stargate.evaluation.statistics import Measure
from stargate.monitoring.progress import safe_text
from stargate.records.store import parse
from stargate.report.page import render_sections
from stargate.report.parts import (
    Cell,
    Column,
    Opening,
    Part,
    Row,
    Section,
    Table,
    measured_cell,
    observed,
)
from stargate.report.wording import DASH, Numbers, Sentence

Json = Mapping[str, Any]

# What the terminal and the top of the page show; the page has all others below.
_SHOWN = (
    "matched_minus_shuffled",
    "gold_logprob",
    "facts_per_dialogue",
    "fact_coverage",
    "question_rate",
    "tokens_per_dialogue",
    "win_rate",
    "win_rate_fixed_responder",
)
_HEADLINE = _SHOWN[0]
# 100 columns: a condition's name and checkpoint, then three numbers with their intervals. Log-probs
# of long golds are in the thousands, differences are not.
_NAME_WIDTH, _CHECKPOINT_WIDTH, _CELL_WIDTHS = 19, 3, (31, 24, 23)
Block = tuple[MeasureInfo, Table]


def _blocks(values: Json, names: Iterable[str] | None = None) -> list[Block]:
    """Tables of the named measures that some condition has; without names of all, in order."""
    measured = {name for found in values["conditions"].values() for name in found["measures"]}
    infos = in_order(measured) if names is None else map(measure_info, names)
    return [
        (info, _table(values, info)) for info in infos if info is not None and info.name in measured
    ]


def _kinds(values: Json) -> str:
    """What the intervals resample; all conditions have the same test pairs."""
    measures = [m for found in values["conditions"].values() for m in found["measures"].values()]
    return " or ".join(sorted({parse(Measure, m).kinds for m in measures if m["n"]}))


def _table(values: Json, info: MeasureInfo) -> Table:
    """One measure over all conditions that have it."""
    reference = values["about"]["reference"]
    rows = []
    for name, found in values["conditions"].items():
        if info.name not in found["measures"]:
            continue
        unfit = info.name.startswith("win_rate") and not found.get("judge", {}).get("fit", True)
        difference = _cell(found.get("differences", {}).get(info.name), info, unfit, signed=True)
        cells = (
            Cell(found["checkpoint"], is_number=False),
            _cell(found["measures"][info.name], info, unfit),
            _cell(found["changes"].get(info.name), info, unfit, signed=True),
            Cell("(reference)") if name == reference else difference,
        )
        rows.append(Row(name, cells))
    heads = ("checkpoint", "last checkpoint", "minus m\u2080", f"minus {reference}")
    region = f"{info.label} by condition"
    return Table("condition", [Column(head) for head in heads], rows, region=region)


def _cell(values: Json | None, info: MeasureInfo, unfit: bool, *, signed: bool = False) -> Cell:
    """A number with its interval; a signed one is coloured where the sign is beyond doubt."""
    if values is None or values["mean"] is None:
        return Cell(DASH)
    measure = parse(Measure, values)
    cell = measured_cell(
        measure,
        Numbers.usual(info.unit),
        signed=signed,
        more_is_better=info.more_is_better,
        void=unfit,
    )
    return replace(cell, hint=observed(measure))


def headline(values: Json) -> str:
    """Who differs from the reference on matched minus shuffled, in one sentence."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
    for _, table in _blocks(values, [_HEADLINE]):
        for row in table.rows:
            difference = row.cells[-1]
            if difference.value is not None:
                word = {"up": "better", "down": "worse"}.get(difference.tone)
                groups[word or "no clear difference"].append(row.label)
    said = [f"{word}: {', '.join(names)}" for word, names in groups.items() if names]
    if not said:
        return "Nothing to compare yet: fewer than two conditions have finished."
    reference = values["about"]["reference"]
    return f"Against {reference}, matched minus shuffled \u2013 {'; '.join(said)}."


def notes(values: Json) -> list[str]:
    """What to keep in mind: conditions that did not finish, and judges that can't be believed."""
    said = []
    for name, found in values["conditions"].items():
        if found["status"] != "finished":
            why = f": {safe_text(found['problem'])}" if found["problem"] else ""
            said.append(f"{name}: {found['status'].replace('_', ' ')}{why}")
        if not found.get("judge", {}).get("fit", True):
            said.append(f"{name}: the judge is UNFIT, do not believe its win rates")
    return said


def ablation_lines(values: Json) -> list[str]:
    """The comparison for a terminal, at most 100 columns wide but for errors' own words."""
    about, conditions = values["about"], values["conditions"]
    lines = ["", headline(values), ""]
    for name, found in conditions.items():
        lines.append(f"{name:{_NAME_WIDTH}}{found['what']}")
    lines += ["", *notes(values)] if notes(values) else []
    shown = _blocks(values, _SHOWN)
    if not shown:
        return lines
    titles = ("last checkpoint", "minus m0", f"minus {about['reference']}")
    head = " " * (_NAME_WIDTH + _CHECKPOINT_WIDTH) + _columns(titles)
    lines += ["", f"means with 95 % intervals over {_kinds(values)}; differences are paired", head]
    for info, table in shown:
        unit = {"nats": ", nats", "share": ", %"}.get(info.unit, "")
        lines.append(f"{info.label}{unit}")
        for row in table.rows:
            checkpoint, *cells = row.cells
            start = f" {row.label}"
            start = f"{start:{_NAME_WIDTH}}{checkpoint.text:{_CHECKPOINT_WIDTH}}"
            lines.append(start + _columns(map(_text, cells)))
    return lines


def _columns(texts: Iterable[str]) -> str:
    return "".join(f"{text:>{width}}" for text, width in zip(texts, _CELL_WIDTHS, strict=True))


def _text(cell: Cell) -> str:
    number = cell.text.removesuffix(" %").removesuffix(" pp")
    text = f"{number} ({cell.interval})" if cell.interval else number
    return f"UNFIT {text}" if cell.void else text


def render_ablation(values: Json) -> str:
    """The HTML file. All texts are escaped, whatever they hold."""
    name = values["about"]["name"]
    end = "each folder is a run: stargate report FOLDER \u00b7 one file, no network"
    footer = f"stargate ablation {name} \u00b7 {end}"
    return render_sections(name, "ablation", footer, list(_sections(values)))


def _sections(values: Json) -> Iterator[Section]:
    opening = Opening("What does each part of the recipe contribute?", headline(values))
    said = [Sentence("warn", note) for note in notes(values)]
    parts = [Part("opening", opening), *([Part("sentences", said)] if said else [])]
    yield Section("answer", "", parts, link="Answer")
    if shown := _blocks(values, _SHOWN):
        others = [block for block in _blocks(values) if block[0].name not in _SHOWN]
        parts = [part for block in shown for part in _parts(*block, info_too=True)]
        if others:
            found = [part for block in others for part in _parts(*block)]
            parts.append(Part("fold", ("All other measures", found)))
        yield Section(
            "measures",
            "Condition by condition",
            parts,
            lede=f"95 % intervals over {_kinds(values)} in small. Differences are paired over "
            "the test pairs; those that leave no doubt about their direction are coloured.",
            link="Measures",
        )
    rows, copied = [], []
    for name, found in values["conditions"].items():
        state = found["status"].replace("_", " ")
        state += f", {found['checkpoint']}" if found["checkpoint"] else ""
        seconds = found["seconds"]
        time = DASH if seconds is None else f"{seconds / 60:.0f} min"
        texts = (found["what"], " ".join(found["overrides"]), state, time, found["folder"])
        rows.append(Row(name, [Cell(text, is_number=text is time) for text in texts]))
        given = [  # what it was given, and by whom
            f"{table} from {entry['from']} ({entry['rows']:,} rows)"
            for table, entry in found["shared"].items()
        ]
        copied.append((name, "; ".join(given) or DASH))
    heads = [Column(h) for h in ("what it is", "settings", "state", "time", "folder")]
    parts = [
        Part("table", Table("condition", heads, rows)),
        Part("fold", ("What was copied", [Part("amounts", copied)])),
    ]
    lede = (
        "All start from the same m\u2080 with the same pairs and seeds. What m\u2080 does was made "
        "once and copied."
    )
    yield Section("conditions", "The conditions", parts, lede=lede, link="Conditions")
    about = Part("amounts", values["about"].items())
    yield Section("run", "The ablation", [about], link="Run")


def _parts(info: MeasureInfo, table: Table, *, info_too: bool = False) -> Iterator[Part]:
    """A measure's table under its name, with what it means."""
    if info_too:
        yield Part("paragraph", info.sentence, title=info.label, note=info.group)
        yield Part("table", table)
    else:
        yield Part("table", table, title=info.label, note=info.group)
