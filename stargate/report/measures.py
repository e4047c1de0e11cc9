"""What the measures of eval.json are called, what they mean in a sentence, how they are written.

The order here is the order of the report's tables. `gain_at_turn_K` and `facts_at_turn_K` have one
entry per K of the evaluation and are made by `measure_info`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["nats", "nats_per_token", "share", "count"]

# Decimals by unit. A share is written in percent.
_DIGITS: dict[Unit, int] = {"nats": 1, "nats_per_token": 3, "share": 1, "count": 2}
_MINUS = "\u2212"


@dataclass(frozen=True, slots=True)
class MeasureInfo:
    """`more_is_better` is None where more is neither: a control, the user's effort."""

    name: str
    label: str
    unit: Unit
    group: str
    sentence: str
    more_is_better: bool | None = None


_GOLD = "Gold log-prob under the frozen m\u2080, in nats"
_PER_TOKEN = "The same per gold token"
_TURNS = "What each question added, in nats"
_FACTS = "Facts and questions"
_EFFORT = "The user's effort, in tokens"
_LEAKS = "Leaks: facts that nobody asked for"
_NEEDLESS = "Tasks that need no question"
_WINS = "Win rate against m\u2080, ties count half"

CATALOG: tuple[MeasureInfo, ...] = (
    MeasureInfo(
        "matched_minus_shuffled",
        "matched minus shuffled",
        "nats",
        _GOLD,
        "The headline: how much likelier the dialogue with this person makes this person's gold "
        "than another person's dialogue about the same task does. Format and fluency cancel out.",
        True,
    ),
    MeasureInfo(
        "matched_minus_no_dialogue",
        "matched minus no dialogue",
        "nats",
        _GOLD,
        "How much the dialogue adds over the opening request alone. It counts the mere form of a "
        "dialogue as well.",
        True,
    ),
    MeasureInfo(
        "gold_logprob",
        "after its own dialogue (matched)",
        "nats",
        _GOLD,
        "Log-probability of the whole gold response after the dialogue, mean over dialogues.",
        True,
    ),
    MeasureInfo(
        "gold_logprob_best",
        "best of the pair's N dialogues",
        "nats",
        _GOLD,
        "The best dialogue of each pair: what selection could reach.",
        True,
    ),
    MeasureInfo(
        "no_dialogue",
        "without a dialogue",
        "nats",
        _GOLD,
        "The gold after the opening request alone: the same for every checkpoint.",
    ),
    MeasureInfo(
        "shuffled",
        "after another persona's dialogue",
        "nats",
        _GOLD,
        "The gold after a dialogue about the same task with somebody else.",
    ),
    MeasureInfo(
        "persona_given",
        "with the persona given",
        "nats",
        _GOLD,
        "The gold when the whole profile is in the prompt: what perfect knowledge would give.",
    ),
    MeasureInfo(
        "persona_and_dialogue",
        "with the persona and its own dialogue",
        "nats",
        _GOLD,
        "Profile and dialogue together: above the persona alone, the dialogue's form helps too.",
    ),
    MeasureInfo(
        "matched_minus_shuffled_per_token",
        "matched minus shuffled",
        "nats_per_token",
        _PER_TOKEN,
        "The headline divided by the gold's length, so that long golds do not weigh more.",
        True,
    ),
    MeasureInfo(
        "gold_logprob_per_token",
        "after its own dialogue",
        "nats_per_token",
        _PER_TOKEN,
        "Gold log-prob divided by the gold's length.",
        True,
    ),
    MeasureInfo(
        "facts_per_dialogue",
        "facts elicited per dialogue",
        "count",
        _FACTS,
        "Facts about the person that questions brought out, each once.",
        True,
    ),
    MeasureInfo(
        "facts_per_turn",
        "facts elicited per turn",
        "count",
        _FACTS,
        "The same per turn.",
        True,
    ),
    MeasureInfo(
        "fact_coverage",
        "the gold's facts that were elicited",
        "share",
        _FACTS,
        "Of the facts that the gold relies on, the share that the dialogue brought out.",
        True,
    ),
    MeasureInfo(
        "question_rate",
        "turns that are a question",
        "share",
        _FACTS,
        "Share of the Questioner's turns that ask something at all.",
        True,
    ),
    MeasureInfo(
        "repeated_question_rate",
        "repeated questions",
        "share",
        _FACTS,
        "Share of later questions that were asked before in the same dialogue.",
        False,
    ),
    MeasureInfo(
        "tokens_per_dialogue",
        "per dialogue",
        "count",
        _EFFORT,
        "All that the user reads and writes in one dialogue.",
    ),
    MeasureInfo("tokens_to_read", "to read", "count", _EFFORT, "The questions."),
    MeasureInfo("tokens_to_write", "to write", "count", _EFFORT, "The answers."),
    MeasureInfo(
        "recited_facts_per_dialogue",
        "facts recited unasked per dialogue",
        "count",
        _LEAKS,
        "Facts that stand in the Roleplayer's words though no question brought them out.",
        False,
    ),
    MeasureInfo(
        "recital_rate",
        "answers that recite the profile",
        "share",
        _LEAKS,
        "Share of answers that repeat the profile's own sentences.",
        False,
    ),
    MeasureInfo(
        "unasked_facts_per_dialogue",
        "facts beyond what was asked, per dialogue",
        "count",
        _LEAKS,
        "Facts that the Questioner was given in excess of the questions that it asked.",
        False,
    ),
    MeasureInfo(
        "needless_question_rate",
        "turns that are a question",
        "share",
        _NEEDLESS,
        "Here any question is wasted: the right answer fits everybody.",
        False,
    ),
    MeasureInfo(
        "needless_tokens_per_dialogue",
        "tokens per dialogue",
        "count",
        _NEEDLESS,
        "What the user reads and writes for nothing.",
        False,
    ),
    MeasureInfo(
        "win_rate",
        "own dialogue, own response",
        "share",
        _WINS,
        "m\u209c against m\u2080, each with its own dialogue. A win counts only where the judge "
        "says so in both orders.",
        True,
    ),
    MeasureInfo(
        "win_rate_fixed_responder",
        "own dialogue, m\u2080 responds for both",
        "share",
        _WINS,
        "Only the dialogues differ, so this is what the questions alone are worth.",
        True,
    ),
)

_BY_NAME = {info.name: info for info in CATALOG}
_AT_TURN = {
    "gain": MeasureInfo(
        "gain_at_turn_",
        "turn",
        "nats",
        _TURNS,
        "Gold log-prob after this turn minus before it; before the first turn there is no "
        "dialogue. Measured on the first dialogues of each pair.",
        True,
    ),
    "facts": MeasureInfo(
        "facts_at_turn_",
        "facts elicited at turn",
        "count",
        _FACTS,
        "New facts that this turn brought out.",
        True,
    ),
}


def measure_info(name: str) -> MeasureInfo | None:
    """The entry of a measure, or None for a name that is not in the catalog."""
    if known := _BY_NAME.get(name):
        return known
    found = re.fullmatch(r"(gain|facts)_at_turn_(\d+)", name)
    if found is None:
        return None
    turn = _AT_TURN[found[1]]
    return replace(turn, name=name, label=f"{turn.label} {found[2]}")


def in_order(names: Iterable[str]) -> list[MeasureInfo]:
    """Entries of the known names: groups in the catalog's order, then turns by number."""
    groups = [_GOLD, _PER_TOKEN, _TURNS, *dict.fromkeys(info.group for info in CATALOG)]
    places = {info.name: place for place, info in enumerate(CATALOG)}
    found = [info for info in map(measure_info, set(names)) if info is not None]

    def place(info: MeasureInfo) -> tuple[int, int, int, str]:
        number = re.search(r"\d+$", info.name)
        known = places.get(info.name, len(places))
        return (groups.index(info.group), known, int(number[0]) if number else 0, info.name)

    return sorted(found, key=place)


def format_value(value: float | None, unit: Unit, *, signed: bool = False) -> str:
    """A number for people: "72.5 %", "\u2212612.3"; a dash where there is none."""
    if value is None:
        return "\u2013"
    digits = _DIGITS[unit]
    number = round(value * 100 if unit == "share" else value, digits)
    text = f"{abs(number):,.{digits}f}"
    sign = _MINUS if number < 0 else "+" if signed and number > 0 else ""
    if unit != "share":
        return sign + text
    return f"{sign}{text}" + (" pp" if signed else " %")


def format_interval(
    low: float | None, high: float | None, unit: Unit, *, signed: bool = False
) -> str:
    """For example "0.8 to 2.4", without the unit; empty where there is no interval."""
    if low is None or high is None:
        return ""
    ends = [format_value(value, unit, signed=signed) for value in (low, high)]
    return " to ".join(end.removesuffix(" %").removesuffix(" pp") for end in ends)
