"""eval.json on the screen: the main measures by checkpoint with their intervals, in 100 columns.

`stargate report RUN` shows all of it.
"""

from collections.abc import Mapping
from typing import Any

# Measure, label, decimals.
_SHOWN = (
    ("gold_logprob", "gold log-prob, own dialogue", 1),
    ("no_dialogue", "  without a dialogue", 1),
    ("shuffled", "  another persona's dialogue", 1),
    ("persona_given", "  persona given", 1),
    ("persona_and_dialogue", "  persona given and dialogue", 1),
    ("matched_minus_shuffled", "matched minus shuffled", 2),
    ("question_rate", "turns that are a question", 2),
    ("repeated_question_rate", "questions asked before", 2),
    ("facts_per_dialogue", "facts elicited per dialogue", 2),
    ("fact_coverage", "gold's facts elicited", 2),
    ("needless_question_rate", "questions nobody needs", 2),
    ("tokens_per_dialogue", "tokens per dialogue", 1),
    ("win_rate", "win rate against m0", 2),
    ("win_rate_fixed_responder", "  m0 responds for both", 2),
)
_NO_EVALUATION = ("changes", "judge", "about")


def evaluation_lines(values: Mapping[str, Any]) -> list[str]:
    """Lines of text; measures that no checkpoint has are left out."""
    names = [name for name in values if name not in _NO_EVALUATION]
    shown = names if len(names) <= 3 else [names[0], *names[-2:]]  # what fits
    first = values[names[0]]["gold_logprob"]
    lines = [
        "",
        f"test pairs, golds scored by m0 in nats: mean [{values['about']['confidence']:.0%} "
        f"interval over {first['task_clusters']} tasks and {first['persona_clusters']} personas]",
        f"{'':30}" + "".join(f"{name:>23}" for name in shown),
    ]
    for key, label, digits in _SHOWN:
        if any(values[name].get(key, {}).get("n") for name in shown):
            cells = [_cell(values[name].get(key), digits) for name in shown]
            lines.append(f"{label:30}" + "".join(f"{cell:>23}" for cell in cells))
    for name, changes in values["changes"].items():
        change = changes.get("matched_minus_shuffled")
        if change and change["mean"] is not None:
            facts = _cell(changes["facts_per_dialogue"], 2, "+")
            lines.append(
                f"{name} minus {names[0]}, same pairs: matched minus shuffled "
                f"{_cell(change, 2, '+')}, facts {facts}"
            )
    if judge := values.get("judge"):
        lines.append(judge["verdict"])
        if not judge["fit"]:
            lines.append("so the win rates above say nothing")
    return lines


def _cell(measure: Mapping[str, Any] | None, digits: int, sign: str = "") -> str:
    if measure is None or measure["mean"] is None:
        return "-"
    mean = f"{measure['mean']:{sign}.{digits}f}"
    if measure["ci_low"] is None:
        return mean
    return f"{mean} [{measure['ci_low']:.{digits}f}, {measure['ci_high']:.{digits}f}]"
