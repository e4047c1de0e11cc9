"""What a text asks."""

import pytest

from stargate.rollout.question_text import is_mostly_asking


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
