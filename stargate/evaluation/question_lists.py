"""Questionnaires that learn nothing: what a list of K questions, the same for everybody, elicits.

    questions, personas, MatchFacts -> AnswerTable (which fact answers what)
        -> the K questions that together cover most of the golds' facts, chosen greedily

The pool that a list is chosen from: questions shipped here (stock_questions.txt), and those that
the checkpoints themselves ask most.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files

from stargate.protocols import MatchFacts
from stargate.rollout.question_text import question_key, questions_in
from stargate.types import Dialogue, Pair, Persona

# question -> persona id -> index of the fact that answers it, None if none does.
AnswerTable = dict[str, dict[str, int | None]]


def stock_questions() -> tuple[str, ...]:
    """The questions that are shipped, in order."""
    text = files("stargate.evaluation").joinpath("stock_questions.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def most_asked(dialogues: Iterable[Dialogue], limit: int) -> list[str]:
    """The questions asked most often, in their commonest wording.

    Wordings with the same content words are one question; ties go to the one asked first.
    """
    wordings: dict[frozenset[str], Counter[str]] = {}
    for dialogue in dialogues:
        for turn in dialogue.turns:
            for question in questions_in(turn.question)[:1]:
                wordings.setdefault(question_key(question), Counter())[question] += 1
    ordered = sorted(wordings.values(), key=lambda counts: -counts.total())
    return [counts.most_common(1)[0][0] for counts in ordered[:limit]]


async def answer_table(
    questions: Iterable[str], personas: Sequence[Persona], match: MatchFacts
) -> AnswerTable:
    """Which fact answers each question, persona by persona."""
    table: AnswerTable = {}
    for question in dict.fromkeys(questions):
        # All at once, so that the question is embedded once for all of them.
        found = await asyncio.gather(*(match(question, p.facts) for p in personas))
        table[question] = dict(zip((p.id for p in personas), found, strict=True))
    return table


def coverage(questions: Sequence[str], pairs: Sequence[Pair], table: AnswerTable) -> float:
    """The mean share of a gold's facts that these questions bring out, over pairs with gold facts.

    Raises ValueError if there is no such pair.
    """
    shares = []
    for pair in pairs:
        if pair.gold_facts:
            told = {table[question][pair.persona.id] for question in questions}
            shares.append(len(told & set(pair.gold_facts)) / len(set(pair.gold_facts)))
    if not shares:
        raise ValueError("no pair names the facts that its gold uses")
    return sum(shares) / len(shares)


def best_list(pairs: Sequence[Pair], table: AnswerTable, num_questions: int) -> list[str]:
    """The questions of the table that cover most together, chosen one after another.

    Each is the one that adds most to those before it; of equals the first in the table.
    """
    chosen: list[str] = []
    for _ in range(min(num_questions, len(table))):
        left = [question for question in table if question not in chosen]
        chosen.append(max(left, key=lambda question: coverage([*chosen, question], pairs, table)))
    return chosen
