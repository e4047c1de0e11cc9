"""Facts: only what a profile states is kept."""

from collections import Counter

import pytest

from stargate.data.build.config import FactsConfig
from stargate.data.build.facts import check_facts, fact_lines
from stargate.data.build.personas import read_persona

TEXT = (
    "I'm Ada Moreau, 41, and I repair violins in Lyon. "
    "I never eat meat, but I eat fish on Fridays. "
    "I owe the bank 12,000 euros. My sister Clara lives in Nantes. I cannot stand onions."
)


def kept(*facts: str) -> tuple[str, ...]:
    return check_facts("\n".join(f"- {fact}" for fact in facts), TEXT, FactsConfig()).kept


@pytest.mark.parametrize(
    "fact",
    [
        "I repair violins in Lyon.",
        "I never eat meat.",
        "I eat fish on Fridays.",
        "I owe 12,000 euros to the bank.",
        "My sister Clara lives in Nantes.",
        "I can't stand onions.",
    ],
)
def test_what_is_stated_is_kept(fact: str) -> None:
    assert kept(fact) == (fact,)


@pytest.mark.parametrize(
    "fact",
    [
        "I play the trombone in Lyon.",  # made up
        "I owe the bank 15,000 euros.",  # another number
        "My sister Clarissa lives in Nantes.",  # another name
        "I eat meat.",  # turned round
        "I stand onions.",
        "I do not repair violins in Lyon.",
        "My violins live in Nantes with fish and onions.",  # mixed together from far places
    ],
)
def test_what_is_not_stated_is_dropped_and_counted(fact: str) -> None:
    checked = check_facts(fact, TEXT, FactsConfig())
    assert checked.kept == ()
    assert checked.dropped == Counter(fact_not_stated=1)


def test_other_drops_have_their_own_reasons() -> None:
    answer = "Facts:\n1. I repair violins in Lyon.\n2) i repair violins in lyon\n* Ada is 41.\n"
    checked = check_facts(answer + "- I owe " + "the bank " * 30, TEXT, FactsConfig())
    assert checked.kept == ("I repair violins in Lyon.",)
    assert checked.dropped == Counter(fact_repeated=1, fact_not_in_first_person=1, fact_too_long=1)


def test_list_marks_and_headings_are_no_part_of_a_fact() -> None:
    assert fact_lines("Here they are:\n\n- I bake.\n12. I am 12.\n\u2022 I sing.\n--") == [
        *("I bake.", "I am 12.", "I sing.")
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Name: Ada Moreau\nI mend clocks.", ("Ada Moreau", "I mend clocks.")),
        ("**Name:** ADA MOREAU\n\nI mend clocks.", ("Ada Moreau", "I mend clocks.")),
        (
            "I'm Ada Moreau, and I mend clocks.",
            ("Ada Moreau", "I'm Ada Moreau, and I mend clocks."),
        ),
        ("I am tired. I mend clocks.", ("", "I am tired. I mend clocks.")),
        ("Name: 12 & Co.\nI mend clocks.", ("", "I mend clocks.")),
    ],
)
def test_a_persona_is_read_with_its_name(answer: str, expected: tuple[str, str]) -> None:
    assert read_persona(answer) == expected
