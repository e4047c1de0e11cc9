"""What is said is parted from what is thought."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.text.reasoning import spoken_part


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>She likes tea.</think>Dear Ann", "Dear Ann"),
        ("\n<think>\nShe\n\nlikes tea.\n</think>\n\nDear Ann\n", "Dear Ann"),
        ("<think>\n\n</think>\n\nDear Ann", "Dear Ann"),
        ("She likes tea.\n</think>\n\nDear Ann", "Dear Ann"),
        ("<thinking>a</thinking> <thinking>b</thinking> Dear Ann", "Dear Ann"),
        ("<think>I close with </think>, then write.</think>Dear Ann", "Dear Ann"),
        ("<think>a <think>b</think> c</think>Dear Ann", "Dear Ann"),
        ("Dear\n<think>Her name?</think>Ann", "Dear\nAnn"),
        ("<seed:think>a</seed:think>Dear Ann", "Dear Ann"),
        ("<reasoning>a</reasoning>Dear Ann", "Dear Ann"),
        ("[THINK]a[/THINK]Dear Ann", "Dear Ann"),
        ("<|START_THINKING|>a<|END_THINKING|>Dear Ann", "Dear Ann"),
        ("\u25c1think\u25b7a\u25c1/think\u25b7Dear Ann", "Dear Ann"),
        ("<|open|>think<|sep|>a<|close|>think<|sep|>Dear Ann", "Dear Ann"),
        ("<|channel>thought\na<channel|>Dear Ann<turn|>", "Dear Ann"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>"
            "Dear Ann<|return|>",
            "Dear Ann",
        ),
        ("<|channel|>final<|message|>Dear Ann", "Dear Ann"),
        ("<think>a</think>", ""),
        ('<think>a</think>{"winner": "A"}', '{"winner": "A"}'),
    ],
)
def test_reasoning_is_taken_off(text: str, said: str) -> None:
    assert spoken_part(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "<think>",
        "<think>She likes tea",
        " \n<think>\nShe likes\ntea",
        "Dear Ann\n<think>But",
        "<think>a</think>\n<think>b",
        "[THINK]a",
        "<|channel|>analysis<|message|>a<|end|>",
    ],
)
def test_an_unclosed_block_says_nothing(text: str) -> None:
    assert spoken_part(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " Dear Ann,\n\n  I think so. \n",
        "Her tag <think> is a word here",
        "a < b, x > y, <b>bold</b>, [THINKING]",
        '{"reason": "it says <think>x</think> and </think>", "winner": "A"}',
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert spoken_part(text) == text


@pytest.mark.parametrize(
    "end",
    [
        *("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "</s>", "<eos>"),
        *("<end_of_turn>", "<turn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        *("<|eot_id|>\n", " <|im_end|>\n<|endoftext|>"),
    ],
)
def test_marks_that_end_a_turn_are_no_words(end: str) -> None:
    assert spoken_part(f"Dear Ann{end}") == "Dear Ann"


@given(st.text(), st.text(alphabet="abc \n", min_size=1))
def test_whatever_is_thought_is_without_effect(thought: str, said: str) -> None:
    assert spoken_part(f"<think>{thought}</think>{said}") == said.strip()
