"""An ablation's report: one HTML file without scripts or network, and the same for a terminal.

    ablation.json -> blocks (one per measure: conditions as rows) -> lines, page

Three numbers per condition: its last checkpoint; that minus m_0; that minus the reference
condition's. The last two are paired over pairs, so what makes a pair easy cancels out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from stargate.monitoring.progress import safe_text
from stargate.report.measures import (
    MeasureInfo,
    format_interval,
    format_value,
    in_order,
    measure_info,
)
from stargate.report.tables import Cell
from stargate.report.templating import new_environment, template_text

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
_DASH = Cell("\u2013")


@dataclass(frozen=True, slots=True)
class Row:
    """One condition's numbers for one measure."""

    condition: str
    checkpoint: str
    value: Cell
    change: Cell  # from m_0
    difference: Cell  # from the reference


@dataclass(frozen=True, slots=True)
class Block:
    """One measure over all conditions that have it."""

    info: MeasureInfo
    rows: tuple[Row, ...]


def blocks(values: Json, names: Iterable[str] | None = None) -> tuple[Block, ...]:
    """Blocks of the named measures that some condition has; without names of all, in order."""
    conditions: Json = values["conditions"]
    measured = {name for found in conditions.values() for name in found["measures"]}
    if names is None:
        infos = in_order(measured)
    else:
        infos = [info for info in map(measure_info, names) if info and info.name in measured]
    return tuple(Block(info, tuple(_rows(values, info))) for info in infos)


def _rows(values: Json, info: MeasureInfo) -> Iterable[Row]:
    reference = values["about"]["reference"]
    for name, found in values["conditions"].items():
        if info.name not in found["measures"]:
            continue
        unfit = info.name.startswith("win_rate") and not found.get("judge", {}).get("fit", True)
        difference = _cell(found.get("differences", {}).get(info.name), info, unfit, signed=True)
        yield Row(
            name,
            found["checkpoint"],
            _cell(found["measures"][info.name], info, unfit),
            _cell(found["changes"].get(info.name), info, unfit, signed=True),
            Cell("(reference)") if name == reference else difference,
        )


def _cell(measure: Json | None, info: MeasureInfo, unfit: bool, *, signed: bool = False) -> Cell:
    """A number with its interval; a signed one is coloured where the sign is beyond doubt."""
    if measure is None or measure["mean"] is None:
        return _DASH
    low, high = measure["ci_low"], measure["ci_high"]
    tone = ""
    if signed and not unfit and low is not None and not low <= 0 <= high:
        better = {None: "", True: "up", False: "down"}[info.more_is_better]
        tone = better if low > 0 else {"up": "down", "down": "up", "": ""}[better]
    return Cell(
        format_value(measure["mean"], info.unit, signed=signed),
        format_interval(low, high, info.unit, signed=signed),
        measure["mean"],
        tone=tone,
        void=unfit,
        hint=f"n = {measure['n']:,}, {measure['task_clusters']} tasks \u00d7 "
        f"{measure['persona_clusters']} personas",
    )


def headline(values: Json) -> str:
    """Who differs from the reference on matched minus shuffled, in one sentence."""
    reference = values["about"]["reference"]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
    for block in blocks(values, [_HEADLINE]):
        for row in block.rows:
            if row.difference.value is not None:
                word = {"up": "better", "down": "worse"}.get(row.difference.tone)
                groups[word or "no clear difference"].append(row.condition)
    said = [f"{word}: {', '.join(names)}" for word, names in groups.items() if names]
    if not said:
        return "Nothing to compare yet: fewer than two conditions have finished."
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
    shown = blocks(values, _SHOWN)
    if not shown:
        return lines
    titles = ("last checkpoint", "minus m0", f"minus {about['reference']}")
    head = " " * (_NAME_WIDTH + _CHECKPOINT_WIDTH) + _columns(titles)
    lines += ["", "means with 95 % intervals over tasks and personas; differences are paired", head]
    for block in shown:
        unit = {"nats": ", nats", "share": ", %"}.get(block.info.unit, "")
        lines.append(f"{block.info.label}{unit}")
        for row in block.rows:
            cells = _columns(map(_text, (row.value, row.change, row.difference)))
            name = f" {row.condition}"
            lines.append(f"{name:{_NAME_WIDTH}}{row.checkpoint:{_CHECKPOINT_WIDTH}}{cells}")
    return lines


def _columns(texts: Iterable[str]) -> str:
    return "".join(f"{text:>{width}}" for text, width in zip(texts, _CELL_WIDTHS, strict=True))


def _text(cell: Cell) -> str:
    number = cell.text.removesuffix(" %").removesuffix(" pp")
    text = f"{number} ({cell.interval})" if cell.interval else number
    return f"UNFIT {text}" if cell.void else text


def render_ablation(values: Json) -> str:
    """The HTML file. All texts are escaped, whatever they hold."""
    shown = blocks(values, _SHOWN)
    names = {block.info.name for block in shown}
    return _template().render(
        about=values["about"],
        conditions=values["conditions"],
        headline=headline(values),
        notes=notes(values),
        shown=shown,
        others=[block for block in blocks(values) if block.info.name not in names],
        minutes=_minutes,
        shared=_shared_of,
        style=Markup(template_text("report.css")),
    )


@cache  # an ablation in progress writes its report after each condition
def _template() -> Template:
    return new_environment().get_template("ablation.html.j2")


def _minutes(seconds: float | None) -> str:
    return "\u2013" if seconds is None else f"{seconds / 60:.0f} min"


def _shared_of(found: Json) -> str:
    """What a condition was given, and by whom."""
    tables: Sequence[str] = [
        f"{table} from {entry['from']} ({entry['rows']:,} rows)"
        for table, entry in found["shared"].items()
    ]
    return "; ".join(tables) or "\u2013"
