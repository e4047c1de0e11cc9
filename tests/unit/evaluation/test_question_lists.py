"""The best constant list, chosen from a table of who would answer what."""

from collections.abc import Sequence

import pytest

from stargate.evaluation.question_lists import (
    AnswerTable,
    answer_table,
    best_list,
    coverage,
    most_asked,
    stock_questions,
)
from stargate.types import Dialogue, Pair, Persona, StopReason, Task, Turn

PEOPLE = [
    Persona("ann", "Ann", "text", "A", ("I have a cat.", "I work at night.", "I am poor.")),
    Persona("bob", "Bob", "text", "A", ("I am a baker.", "I own a dog.", "I hate fish.")),
]


def pair(task: str, person: Persona, *gold_facts: int) -> Pair:
    return Pair(Task(task, "?", "A"), person, "gold", gold_facts)


PAIRS = [
    pair("pet", PEOPLE[0], 0),
    pair("pet", PEOPLE[1], 1, 2),
    pair("job", PEOPLE[0], 1),
    pair("job", PEOPLE[1], 0),
]
TABLE: AnswerTable = {
    "Weather?": {"ann": None, "bob": None},
    "Pets?": {"ann": 0, "bob": 1},
    "Animals?": {"ann": 0, "bob": 1},
    "Job?": {"ann": 1, "bob": 0},
}


def dialogue(*questions: str) -> Dialogue:
    stop = StopReason.STOP
    turns = tuple(Turn(text, (), stop, "Yes.", (), stop) for text in questions)
    return Dialogue("d", "pet:ann", 0, len(turns), 0, 0, turns)


def test_coverage_is_the_mean_share_of_gold_facts() -> None:
    assert coverage(["Pets?"], PAIRS, TABLE) == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert coverage(["Pets?", "Job?"], PAIRS, TABLE) == pytest.approx((1 + 1 / 2 + 1 + 1) / 4)
    assert coverage(["Weather?"], PAIRS, TABLE) == 0.0
    with pytest.raises(ValueError, match="no pair names"):
        coverage(["Pets?"], [pair("pet", PEOPLE[0])], TABLE)


def test_best_list_does_not_take_what_adds_nothing() -> None:
    assert best_list(PAIRS, TABLE, 1) == ["Job?"]  # 2 of 4, pets 1.5 of 4
    assert best_list(PAIRS, TABLE, 2) == ["Job?", "Pets?"]  # the first of two equals
    assert len(best_list(PAIRS, TABLE, 9)) == len(TABLE)


async def test_table_holds_who_would_answer_what() -> None:
    class Match:
        async def __call__(self, question: str, facts: Sequence[str]) -> int | None:
            return next((i for i, fact in enumerate(facts) if question[:3] in fact), None)

        async def states(self, text: str, fact: str) -> bool:
            raise AssertionError("nobody states anything here")

    found = await answer_table(["cat?", "dog?", "cat?"], PEOPLE, Match())
    assert found == {"cat?": {"ann": 0, "bob": None}, "dog?": {"ann": None, "bob": 1}}


def test_most_asked_counts_wordings_of_one_question_together() -> None:
    played = [
        dialogue("Do you have a pet? And a job?", "No idea."),
        dialogue("Do you have any pets?", "Where do you live?"),
        dialogue("Do you have any pets?", "Where do you live?", "Why?"),
    ]
    assert most_asked(played, 2) == ["Do you have any pets?", "Where do you live?"]
    assert most_asked(played, 9)[2:] == ["Why?"]


def test_stock_questions_are_questions_each_once() -> None:
    shipped = stock_questions()
    assert len(set(shipped)) == len(shipped) >= 40
    assert all(question.endswith("?") for question in shipped)
