"""Sentences, spacing and words."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.data.text import content_words, same_text_key, sentence_spans, tidy


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    "marked",  # | is a blank between two sentences
    [
        "One.|Two!|Three?|Four",
        "Dr. Dias met J. R. Tolkien in St. Louis.|He left.",
        "The U.S. Navy came.|I left the U.S.|My cat too.",
        "It cost 3.5 dollars on the 18th.|Fine.",
        "Born Jan. 18, 1968.|He sings.",
        "She loves B.B. King.|She sings.",
        "Up at 5 a.m.|She runs.",
        'She says "Stop!" and goes.|"Go."|He went.',
        "A pause... and more.|So am I.|Bye.",
        "I said no.|Really.",
    ],
)
def test_sentences_end_where_a_reader_sees_it(marked: str) -> None:
    assert sentences(marked.replace("|", " ")) == marked.split("|")


def test_lists_and_other_scripts_have_sentences_too() -> None:
    listed = "Steps:\n1. Choose.\n2. Sit.\n\nDone"
    assert sentences(listed) == ["Steps:", "1. Choose.", "2. Sit.", "Done"]
    chinese = ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"]
    assert sentences("".join(chinese)) == chinese
    assert sentences("  \n ") == []


@given(st.text(alphabet="aB.!?\"' \n1…。", max_size=60))
def test_sentences_hold_every_character_once_and_in_order(text: str) -> None:
    spans = sentence_spans(text)
    assert all(start < end for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  b\t c\u00a0d", "a b c d"),
        (" a \r\n b \n\n\n\n c ", "a\nb\n\nc"),
        ("a\x1b[31m\x00b\ufeff", "a[31mb"),
        ("half \ud800 a pair", "half a pair"),
        ("Do:\n- a\n\t- b  c\n  - d", "Do:\n- a\n    - b c\n  - d"),
    ],
)
def test_tidy_mends_blanks_and_controls(text: str, expected: str) -> None:
    assert tidy(text) == expected


@given(st.text(max_size=80))
def test_tidy_changes_a_text_once(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)


def test_same_text_despite_case_blanks_quotes_and_final_mark() -> None:
    assert same_text_key("What\u2019s  the BEST?") == same_text_key(" what's the best. ")
    assert same_text_key("What is it") != same_text_key("What is that")


def test_content_words_leave_out_function_words_and_endings() -> None:
    text = "I am planning my plans; she loves sewing dresses"
    assert content_words(text) == ["plan", "plan", "lov", "sew", "dress"]


def test_a_very_long_text_is_split_in_no_time() -> None:
    text = "It rains. " * 50_000 + "X" * 300_000 + "."
    assert len(sentences(text)) == 50_001
