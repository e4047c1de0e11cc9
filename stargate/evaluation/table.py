"""eval.json on the screen: the main measures of the first and last checkpoint and what changed, in
100 columns. `stargate report RUN` shows all of it.
"""

from collections.abc import Mapping
from typing import Any

from stargate.evaluation.catalog import checkpoints_of, measure_info
from stargate.evaluation.references import COLUMNS, ROWS

_ONE_DECIMAL = (
    *("gold_logprob", "no_dialogue", "shuffled", "persona_given", "persona_and_dialogue"),
    "tokens_per_dialogue",
)
# What is shown first.
MAIN_MEASURES = (
    *("skill", "skill_coverage"),
    *_ONE_DECIMAL[:-1],
    *("contrast", "matched_minus_shuffled", "question_rate", "repeated_question_rate"),
    "facts_per_dialogue",
    *("fact_coverage", *(f"coverage_of_importance_{level}" for level in (3, 2, 1))),
    *("task_gain", "distinct_question_rate", "generic_question_rate", "answered_already_rate"),
    "question_fit",
    *("ask_balanced_accuracy", "ask_accuracy", "always_ask_accuracy", "never_ask_accuracy"),
    *("needless_question_rate", "tokens_per_dialogue"),
    *("win_rate", "win_rate_fixed_responder"),
)
_HEADLINE = "matched_minus_shuffled"
_LABEL_WIDTH, _CELL_WIDTH = 28, 24


def evaluation_lines(values: Mapping[str, Any]) -> list[str]:
    """Lines of text; measures that no checkpoint has are left out."""
    names = checkpoints_of(values)
    first, last = names[0], names[-1]
    shown = list(dict.fromkeys((first, last)))
    changes = values["changes"].get(last, {})
    clusters = values[first][_HEADLINE]
    over = f"{clusters['task_clusters']} tasks"
    if not clusters["nested"]:
        over += f" and {clusters['persona_clusters']} personas"
    titles = [*shown, *([f"{last} minus {first}"] if changes else [])]
    lines = [
        "",
        f"test pairs, golds scored by m0 in nats: mean [{values['about']['confidence']:.0%} "
        f"interval over {over}]",
        *(["each person belongs to one task"] if clusters["nested"] else []),
        f"{'':{_LABEL_WIDTH}}" + "".join(f"{title:>{_CELL_WIDTH}}" for title in titles),
    ]
    judge = values.get("judge")
    unfit = judge is not None and not judge["fit"]
    for key in MAIN_MEASURES:
        info = measure_info(key)
        if info and any(values[name].get(key, {}).get("n") for name in shown):
            digits = num_decimals(key)
            cells = [measure_cell(values[name].get(key), digits) for name in shown]
            cells.append(measure_cell(changes.get(key), digits, "+"))
            row = "".join(f"{cell:>{_CELL_WIDTH}}" for cell in cells)
            if unfit and key.startswith("win_rate"):
                row += "  (unfit judge)"
            lines.append(f"{info.label:{_LABEL_WIDTH}}{row}".rstrip())
    error = values[last][_HEADLINE]["standard_error"]
    if error is not None:
        lines.append(
            f"plain standard error of {last}'s matched minus shuffled, as if dialogues were "
            f"independent: {error:.2f}"
        )
    lines += reference_lines(values, last)
    if judge is not None and unfit:
        lines += ["", f"the judge ({judge['model']}) is UNFIT, so its win rates mean nothing:"]
        lines += [f"  {failure}" for failure in judge["failures"]]
    elif judge is not None:
        lines += ["", "the judge is fit"]
    return lines


def reference_lines(values: Mapping[str, Any], last: str) -> list[str]:
    """The reference rows below the last checkpoint, and what the constant list asks."""
    rows: Mapping[str, Any] = values.get("reference", {})
    if not rows:
        return []
    titles = "".join(f"{title:>{_CELL_WIDTH}}" for title in COLUMNS.values())
    lines = ["", f"{'against what nobody learned':{_LABEL_WIDTH}}{titles}"]
    for name in (*(row for row in ROWS if row in rows), last):
        found = values[last] if name == last else rows[name]
        cells = [measure_cell(found.get(key), 1 if key == "contrast" else 2) for key in COLUMNS]
        line = f"{name.replace('_', ' '):{_LABEL_WIDTH}}"
        lines.append((line + "".join(f"{cell:>{_CELL_WIDTH}}" for cell in cells)).rstrip())
    if asked := rows.get("constant", {}).get("questions"):
        lines.append(f"the constant list: {' '.join(asked)}")
    if why := values[last].get("no_skill"):
        lines.append(f"no skill: {why}")
    return lines


def num_decimals(name: str) -> int:
    """How exactly a measure is shown."""
    return 1 if name in _ONE_DECIMAL else 2


def measure_cell(measure: Mapping[str, Any] | None, digits: int, sign: str = "") -> str:
    """A measure as "mean [low, high]", as far as there is one."""
    if measure is None or measure["mean"] is None:
        return ""
    mean = f"{measure['mean']:{sign}.{digits}f}"
    if measure["ci_low"] is None:
        return mean
    return f"{mean} [{measure['ci_low']:.{digits}f}, {measure['ci_high']:.{digits}f}]"
