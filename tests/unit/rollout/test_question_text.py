"""What a text asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.rollout.question_text import (
    is_mostly_asking,
    is_repeated,
    question_key,
    tasks_with_copies,
)


@pytest.mark.parametrize(
    ("text", "asking"),
    [
        ("What can you spend?", True),
        ("Sure! What can you spend in a week, and for how many?", True),
        ("Eat oats and beans. Shall I go on?", False),
        ("Walk to work. Do you?", False),
        ("Walk. Run where?", True),
        ("Walk. Run?", False),
        ("Tell your boss that you need a rest.", False),
        ("Why walk? It is free, it is quiet, and it does you good.", False),
        ("?", False),
        ("", False),
    ],
)
def test_what_asks_in_place_of_answering(text: str, asking: bool) -> None:
    assert is_mostly_asking(text) is asking


WORDS = st.sampled_from(["drink", "tea", "coffee", "budget", "garden", "train", "what", "you"])
QUESTIONS = st.dictionaries(
    st.lists(WORDS, min_size=1, max_size=12).map(" ".join),
    st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3),
    max_size=30,
)


@given(QUESTIONS)
def test_the_index_finds_the_tasks_of_all_near_copies(asked: dict[str, set[str]]) -> None:
    wordings = {question_key(question): question for question in asked}
    tasks = {key: asked[question] for key, question in wordings.items()}
    expected = {
        key: set().union(*(tasks[k] for k, other in wordings.items() if is_repeated(one, [other])))
        for key, one in wordings.items()
    }
    assert tasks_with_copies(tasks, enough=7) == expected
    for key, found in tasks_with_copies(tasks, enough=4).items():
        assert found <= expected[key] and (found == expected[key] or len(found) >= 4)
