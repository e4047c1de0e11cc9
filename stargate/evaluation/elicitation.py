"""What a dialogue brought out, and what it cost the user: no judge, no model.

    (Pair, Dialogue) -> TurnFacts per turn -> observations by measure

facts_per_dialogue          facts that questions brought out, each once, if not taken back
facts_per_turn              the same per turn; facts_at_turn_1, _2, ... by place in the dialogue
fact_coverage               share of the gold's facts that were brought out
coverage_of_importance_3    share of the person's facts of this importance that were; also _2, _1
questions_per_dialogue      questions that were asked
question_rate               share of turns that are a question
repeated_question_rate      share of later questions that were asked before in the same dialogue
tokens_per_dialogue         the user's effort: tokens_to_read + tokens_to_write (answers)
recited_facts_per_dialogue  leak: facts that the Roleplayer's words state without being elicited
recital_rate                leak: share of answers that repeat the profile's own sentences
unasked_facts_per_dialogue  leak: facts that the Questioner was given beyond what it asked for
needless_question_rate      share of turns that are a question on tasks that need none
needless_tokens_per_dialogue

All but the needless_ measures are over tasks that need a question.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from stargate.errors import DataError
from stargate.evaluation.statistics import Observation
from stargate.rollout.question_text import content_words, is_repeated, questions_in, words_of
from stargate.types import Dialogue, Pair, Persona

CountTokens = Callable[[str], int]

# Share of a fact's content words that an answer must contain to state it. Below 1, because "I
# have two dogs" becomes "we have 2 dogs"; a paraphrase without the fact's words is not seen, so
# the text-based measures are lower bounds.
_STATED_SHARE = 0.75
# One shared content word ("dog") is a topic, not a statement.
_MIN_STATED_WORDS = 2
# Consecutive words of the profile in an answer: eight in a row are a copy, not a coincidence.
_RECITAL_WORDS = 8


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """Facts by index into the persona's, new at this turn: not given at an earlier one, or taken
    back since.

    `elicited` were brought out by the question; `recited` stand in the answer's words without
    that; `num_unasked` is how many of both are more than the questions that were asked.
    """

    elicited: tuple[int, ...]
    recited: tuple[int, ...]
    num_unasked: int


def turn_facts(pair: Pair, dialogue: Dialogue, *, grounded: bool = True) -> tuple[TurnFacts, ...]:
    """What each turn gave.

    `grounded`: the Roleplayer was given facts by the question, and `Turn.elicited` says which.
    Without grounding nobody knows, so the answer's words tell: as many of the facts stated as
    questions were asked count as elicited, the rest as recited. Raises DataError for a dialogue
    of another pair and for a fact that the persona does not have.
    """
    _check(pair, dialogue)
    given: set[int] = set()
    turns: list[TurnFacts] = []
    for turn in dialogue.turns:
        num_asked = len(questions_in(turn.question))
        stated = [i for i in stated_facts(turn.answer, pair.persona) if i not in given]
        given.difference_update(turn.retracted)
        if grounded:
            elicited = [i for i in dict.fromkeys(turn.elicited) if i not in given]
            recited = [i for i in stated if i not in elicited]
        else:
            elicited, recited = stated[:num_asked], stated[num_asked:]
        num_given = len(elicited) + len(recited)
        turns.append(TurnFacts(tuple(elicited), tuple(recited), max(0, num_given - num_asked)))
        given.update(elicited, recited)
    return tuple(turns)


def observe_elicitation(
    played: Iterable[tuple[Pair, Dialogue]], count_tokens: CountTokens, *, grounded: bool = True
) -> dict[str, list[Observation]]:
    """Observations by measure; a measure without any is there with an empty list.

    `count_tokens` counts every text, fixed answers too: the user reads and writes them all, while
    a record's token ids are only those that an engine sampled.
    """
    found: dict[str, list[Observation]] = {name: [] for name in _MEASURES}
    for pair, dialogue in played:
        values = (
            _observe_needed(pair, dialogue, count_tokens, grounded)
            if pair.task.needs_question
            else _observe_needless(dialogue, count_tokens)
        )
        for name, value in values:
            observation = Observation(pair.task.id, pair.persona.id, float(value))
            found.setdefault(name, []).append(observation)
    return found


def stated_facts(text: str, persona: Persona) -> tuple[int, ...]:
    """Indices of the persona's facts that a text states in the fact's own words (any form)."""
    words = set(content_words(text))
    return tuple(
        index for index, fact in enumerate(persona.facts) if _states(words, content_words(fact))
    )


def recites_profile(answer: str, persona: Persona, allowed: Sequence[int] = ()) -> bool:
    """Whether an answer repeats a run of words of the profile that is not in an `allowed` fact."""
    profile = _runs(words_of(persona.text))
    permitted = {run for index in allowed for run in _runs(words_of(persona.facts[index]))}
    return bool((_runs(words_of(answer)) & profile) - permitted)


_MEASURES = (
    "facts_per_dialogue",
    "facts_per_turn",
    "fact_coverage",
    "questions_per_dialogue",
    "question_rate",
    "repeated_question_rate",
    "tokens_per_dialogue",
    "tokens_to_read",
    "tokens_to_write",
    "recited_facts_per_dialogue",
    "recital_rate",
    "unasked_facts_per_dialogue",
    "needless_question_rate",
    "needless_tokens_per_dialogue",
)


def _observe_needed(
    pair: Pair, dialogue: Dialogue, count_tokens: CountTokens, grounded: bool
) -> Iterator[tuple[str, float]]:
    facts = turn_facts(pair, dialogue, grounded=grounded)
    # The records know what was taken back; without grounding nobody does.
    elicited = set(dialogue.elicited) if grounded else {i for turn in facts for i in turn.elicited}
    read, written = _tokens(dialogue, count_tokens)
    yield "facts_per_dialogue", len(elicited)
    yield "tokens_to_read", read
    yield "tokens_to_write", written
    yield "tokens_per_dialogue", read + written
    yield "recited_facts_per_dialogue", sum(len(turn.recited) for turn in facts)
    yield "unasked_facts_per_dialogue", sum(turn.num_unasked for turn in facts)
    if pair.gold_facts:
        gold_facts = set(pair.gold_facts)
        yield "fact_coverage", len(elicited & gold_facts) / len(gold_facts)
    for level in sorted(set(pair.persona.importance)):
        details = {i for i, found in enumerate(pair.persona.importance) if found == level}
        yield f"coverage_of_importance_{level}", len(elicited & details) / len(details)
    yield "questions_per_dialogue", sum(len(questions_in(t.question)) for t in dialogue.turns)
    asked: list[str] = []
    told: list[int] = []  # what questions brought out is no copy of the profile
    for number, (turn, given) in enumerate(zip(dialogue.turns, facts, strict=True), start=1):
        yield "facts_per_turn", len(given.elicited)
        yield f"facts_at_turn_{number}", len(given.elicited)
        yield "question_rate", turn.is_question
        questions = questions_in(turn.question)
        if questions and asked:
            yield "repeated_question_rate", all(is_repeated(one, asked) for one in questions)
        asked += questions
        told += given.elicited
        yield "recital_rate", recites_profile(turn.answer, pair.persona, told)


def _observe_needless(dialogue: Dialogue, count_tokens: CountTokens) -> Iterator[tuple[str, float]]:
    for turn in dialogue.turns:
        yield "needless_question_rate", turn.is_question
    yield "needless_tokens_per_dialogue", sum(_tokens(dialogue, count_tokens))


def _tokens(dialogue: Dialogue, count_tokens: CountTokens) -> tuple[int, int]:
    """Tokens that the user reads (questions) and writes (answers)."""
    return (
        sum(count_tokens(turn.question) for turn in dialogue.turns),
        sum(count_tokens(turn.answer) for turn in dialogue.turns),
    )


def _check(pair: Pair, dialogue: Dialogue) -> None:
    if dialogue.pair_id != pair.id:
        raise DataError(f"dialogue {dialogue.id} belongs to {dialogue.pair_id}, got pair {pair.id}")
    known = range(len(pair.persona.facts))
    for index in (*dialogue.elicited, *pair.gold_facts):
        if index not in known:
            raise DataError(
                f"dialogue {dialogue.id}: persona {pair.persona.id} has {len(known)} facts, "
                f"got fact {index}"
            )


def _states(words: set[str], fact: Sequence[str]) -> bool:
    needed = set(fact)
    common = len(words & needed)
    return common >= _MIN_STATED_WORDS and common >= _STATED_SHARE * len(needed)


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    size = _RECITAL_WORDS
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}
