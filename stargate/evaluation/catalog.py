"""What the measures of eval.json are called, what they mean in a sentence, how they are written.

Whoever shows a measure, on the screen, in a table or in a figure, calls it by its label here. The
order is that of the report's tables. `gain_at_turn_K`, `facts_at_turn_K` and
`coverage_of_importance_K` have one entry per K of the evaluation and are made by `measure_info`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["nats", "nats_per_token", "share", "count", "ratio"]


@dataclass(frozen=True, slots=True)
class MeasureInfo:
    """`more_is_better` is None where more is neither: a control, the user's effort."""

    name: str
    label: str
    unit: Unit
    group: str
    more_is_better: bool | None = None

    @property
    def sentence(self) -> str:
        """What it means."""
        return _SENTENCES[re.sub(r"\d+$", "", self.name)]


_SKILL = "Against questionnaires and told facts"
_GOLD = "Gold log-prob under the frozen m\u2080, in nats"
_PER_TOKEN = "The same per gold token"
_TURNS = "What each question added, in nats"
_FACTS = "Facts and questions"
_DIVERSITY = "Diversity and fit of questions"
_EFFORT = "The user's effort, in tokens"
_LEAKS = "Leaks: facts that nobody asked for"
_FIRST = "Whether to ask at all: the first turn"
_NEEDLESS = "Tasks that need no question"
_WINS = "Win rate against m\u2080, ties count half"
_GROUPS = (
    *(_SKILL, _GOLD, _PER_TOKEN, _TURNS, _FACTS, _DIVERSITY, _EFFORT, _LEAKS, _FIRST),
    *(_NEEDLESS, _WINS),
)

CATALOG: tuple[MeasureInfo, ...] = (
    MeasureInfo("skill", "skill", "ratio", _SKILL, True),
    MeasureInfo("skill_coverage", "skill in facts", "ratio", _SKILL, True),
    MeasureInfo("contrast", "contrast with others' golds", "nats", _GOLD, True),
    MeasureInfo("matched_minus_shuffled", "matched minus shuffled", "nats", _GOLD, True),
    MeasureInfo("matched_minus_no_dialogue", "matched minus no dialogue", "nats", _GOLD, True),
    MeasureInfo("gold_logprob", "gold log-prob, own dialogue", "nats", _GOLD, True),
    MeasureInfo("gold_logprob_best", "best of the pair's dialogues", "nats", _GOLD, True),
    MeasureInfo("no_dialogue", "without a dialogue", "nats", _GOLD),
    MeasureInfo("shuffled", "another persona's dialogue", "nats", _GOLD),
    MeasureInfo("persona_given", "persona given", "nats", _GOLD),
    MeasureInfo("persona_and_dialogue", "persona and own dialogue", "nats", _GOLD),
    MeasureInfo(
        "matched_minus_shuffled_per_token",
        "matched minus shuffled",
        "nats_per_token",
        _PER_TOKEN,
        True,
    ),
    MeasureInfo(
        "gold_logprob_per_token", "after its own dialogue", "nats_per_token", _PER_TOKEN, True
    ),
    MeasureInfo("facts_per_dialogue", "facts elicited per dialogue", "count", _FACTS, True),
    MeasureInfo("facts_per_turn", "facts elicited per turn", "count", _FACTS, True),
    MeasureInfo("fact_coverage", "gold's facts elicited", "share", _FACTS, True),
    MeasureInfo("questions_per_dialogue", "questions per dialogue", "count", _FACTS),
    MeasureInfo("question_rate", "turns that are a question", "share", _FACTS, True),
    MeasureInfo("repeated_question_rate", "repeated questions", "share", _FACTS, False),
    MeasureInfo("task_gain", "coverage due to the task", "share", _DIVERSITY, True),
    MeasureInfo("distinct_question_rate", "distinct questions", "share", _DIVERSITY, True),
    MeasureInfo("generic_question_rate", "generic questions", "share", _DIVERSITY, False),
    MeasureInfo("answered_already_rate", "questions answered before", "share", _DIVERSITY, False),
    MeasureInfo("question_fit", "first question's fit, nats", "nats", _DIVERSITY),
    MeasureInfo("tokens_per_dialogue", "tokens per dialogue", "count", _EFFORT),
    MeasureInfo("tokens_to_read", "to read", "count", _EFFORT),
    MeasureInfo("tokens_to_write", "to write", "count", _EFFORT),
    MeasureInfo(
        "recited_facts_per_dialogue", "facts recited unasked per dialogue", "count", _LEAKS, False
    ),
    MeasureInfo("recital_rate", "answers that recite the profile", "share", _LEAKS, False),
    MeasureInfo(
        "unasked_facts_per_dialogue",
        "facts beyond what was asked, per dialogue",
        "count",
        _LEAKS,
        False,
    ),
    MeasureInfo("ask_rate", "asks, vague tasks", "share", _FIRST, True),
    MeasureInfo("needless_ask_rate", "asks, plain tasks", "share", _FIRST, False),
    MeasureInfo("ask_balanced_accuracy", "vague or plain, balanced", "share", _FIRST, True),
    MeasureInfo("ask_accuracy", "vague or plain, accuracy", "share", _FIRST, True),
    MeasureInfo("always_ask_accuracy", "accuracy of always asking", "share", _FIRST),
    MeasureInfo("never_ask_accuracy", "accuracy of never asking", "share", _FIRST),
    MeasureInfo("needless_question_rate", "needless questions", "share", _NEEDLESS, False),
    MeasureInfo("needless_tokens_per_dialogue", "tokens per dialogue", "count", _NEEDLESS, False),
    MeasureInfo("win_rate", "win rate, own responses", "share", _WINS, True),
    MeasureInfo("win_rate_fixed_responder", "win rate, m\u2080 responds", "share", _WINS, True),
)
_NUMBERED = {
    info.name: info
    for info in (
        MeasureInfo("gain_at_turn_", "turn", "nats", _TURNS, True),
        MeasureInfo("facts_at_turn_", "facts elicited at turn", "count", _FACTS, True),
        MeasureInfo("coverage_of_importance_", "details of importance", "share", _FACTS, True),
    )
}
_SENTENCES = {
    "skill": (
        "Where the contrast stands between the best constant list of questions (0) and told gold "
        "facts (1)."
    ),
    "skill_coverage": "The same for the share of the gold's facts that were brought out.",
    "contrast": (
        "How much likelier the dialogue makes this person's gold than other persons' golds, after "
        "what the dialogue does for any gold and what the gold has anywhere is taken out."
    ),
    "matched_minus_shuffled": (
        "The headline: how much likelier the dialogue with this person makes this person's gold "
        "than another person's dialogue about the same task does. Format and fluency cancel out."
    ),
    "matched_minus_no_dialogue": (
        "How much the dialogue adds over the opening request alone. It counts the mere form of a "
        "dialogue as well."
    ),
    "gold_logprob": (
        "Log-probability of the whole gold response after the dialogue, mean over dialogues."
    ),
    "gold_logprob_best": "The best dialogue of each pair: what selection could reach.",
    "no_dialogue": "The gold after the opening request alone: the same for every checkpoint.",
    "shuffled": "The gold after a dialogue about the same task with somebody else.",
    "persona_given": (
        "The gold when the whole profile is in the prompt: what perfect knowledge would give."
    ),
    "persona_and_dialogue": (
        "Profile and dialogue together: above the persona alone, the dialogue's form helps too."
    ),
    "matched_minus_shuffled_per_token": (
        "The headline divided by the gold's length, so that long golds do not weigh more."
    ),
    "gold_logprob_per_token": "Gold log-prob divided by the gold's length.",
    "facts_per_dialogue": "Facts about the person that questions brought out, each once.",
    "facts_per_turn": "The same per turn.",
    "fact_coverage": (
        "Of the facts that the gold relies on, the share that the dialogue brought out."
    ),
    "coverage_of_importance_": (
        "Of the person's details that matter so much (3: most), the share that was brought out."
    ),
    "questions_per_dialogue": "What tasks that need a question cost the user in questions.",
    "question_rate": "Share of the Questioner's turns that ask something at all.",
    "repeated_question_rate": (
        "Share of later questions that were asked before in the same dialogue."
    ),
    "task_gain": (
        "Gold's facts elicited, minus the share of the facts that other tasks' golds for this "
        "person use: what asking for this very task brought."
    ),
    "distinct_question_rate": (
        "Different questions among all of the checkpoint. It falls with their number, so compare "
        "evaluations of the same size."
    ),
    "generic_question_rate": "Share of questions that stand in three or more other tasks as well.",
    "answered_already_rate": (
        "Share of later questions whose answer the person had told in the same dialogue."
    ),
    "question_fit": (
        "How much likelier the checkpoint asks its first question at this task than at others: 0 "
        "where it asks the same everywhere. Repeating the task's words counts, too."
    ),
    "tokens_per_dialogue": "All that the user reads and writes in one dialogue.",
    "tokens_to_read": "The questions.",
    "tokens_to_write": "The answers.",
    "recited_facts_per_dialogue": (
        "Facts that stand in the Roleplayer's words though no question brought them out."
    ),
    "recital_rate": "Share of answers that repeat the profile's own sentences.",
    "unasked_facts_per_dialogue": (
        "Facts that the Questioner was given in excess of the questions that it asked."
    ),
    "ask_rate": "Share of tasks that need a question at which the first turn asks one.",
    "needless_ask_rate": "The same of tasks that need none.",
    "ask_balanced_accuracy": (
        "Mean of: asks where something is missing; does not ask where nothing is. Always asking "
        "and never asking both have 50 %."
    ),
    "ask_accuracy": (
        "Share of tasks at which the first turn asks or does not as it should. Compare it with the "
        "two constant policies."
    ),
    "always_ask_accuracy": "What asking at every task would have: the share of vague tasks.",
    "never_ask_accuracy": "What never asking would have: the share of plain tasks.",
    "needless_question_rate": "Here any question is wasted: the right answer fits everybody.",
    "needless_tokens_per_dialogue": "What the user reads and writes for nothing.",
    "win_rate": (
        "m\u209c against m\u2080, each with its own dialogue. A win counts only where the judge "
        "says so in both orders."
    ),
    "win_rate_fixed_responder": (
        "Only the dialogues differ, so this is what the questions alone are worth."
    ),
    "gain_at_turn_": (
        "Gold log-prob after this turn minus before it; before the first turn there is no "
        "dialogue. Measured on the first dialogues of each pair."
    ),
    "facts_at_turn_": "New facts that this turn brought out.",
}
_BY_NAME = {info.name: info for info in CATALOG}


def measure_info(name: str) -> MeasureInfo | None:
    """The entry of a measure, or None for a name that is not in the catalog."""
    if known := _BY_NAME.get(name):
        return known
    found = re.fullmatch(r"(\w+_)(\d+)", name)
    numbered = _NUMBERED.get(found[1]) if found else None
    if found is None or numbered is None:
        return None
    return replace(numbered, name=name, label=f"{numbered.label} {found[2]}")


def in_order(names: Iterable[str]) -> list[MeasureInfo]:
    """Entries of the known names: groups in the catalog's order, then turns by number."""
    places = {name: place for place, name in enumerate(_BY_NAME)}

    def place(info: MeasureInfo) -> tuple[int, int, int, str]:
        number = re.search(r"\d+$", info.name)
        known = places.get(info.name, len(places))
        return (_GROUPS.index(info.group), known, int(number[0]) if number else 0, info.name)

    return sorted((info for info in map(measure_info, set(names)) if info is not None), key=place)


def checkpoints_of(evaluation: Iterable[str]) -> list[str]:
    """The names ("m0", "m3") among the keys of an eval.json, by version."""
    names = (name for name in evaluation if re.fullmatch(r"m\d+", name))
    return sorted(names, key=lambda name: int(name[1:]))
