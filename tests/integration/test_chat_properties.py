"""Random dialogues through every tokenizer at hand: the row is what the engine saw and what it
sampled, and no text of a user becomes a control token.

`STARGATE_EXAMPLES=2000` draws that many per tokenizer.
"""

import os
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stargate.resources.models import resolve_model
from stargate.text.chat import ChatFormat, Message
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.types import StopReason
from tests.chat_families import END_TEXTS, family_tokenizer, seen_and_sampled

pytestmark = pytest.mark.integration

NUM_EXAMPLES = int(os.environ.get("STARGATE_EXAMPLES", "40"))
CASES: list[tuple[str, dict[str, Any]]] = [
    ("embedded", {}),
    ("qwen3", {"enable_thinking": False}),
    ("qwen3", {"enable_thinking": True}),
    ("gemma3", {}),
    ("llama3_1", {}),
    ("gptoss", {}),
]
# Spellings from all families, whole and in parts that may come together.
WORDS = (
    *("<think>", "</think>", "<tool_call>", "<start_of_turn>", "<|eot_id|>", "<|channel|>"),
    *("<|im_start|>", "<|im_end|>", "<bos>", "</s>", "<|", "|>", "<", ">", "think", "im_end", "/"),
    *("<unused7>", "<table>", "[multimodal]", "<|end|>", "<|start|>assistant", "<|message|>"),
    *(" ", "  ", "\n", "\n\n", "\n\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028"),
    *("system", "user", "assistant", "model", "It's", "don't", "\u00e9", "e\u0301", "\U0001f600"),
)


@cache
def tokenizer_of(name: str, switch: bool | None) -> HfChatTokenizer:
    if name == "embedded":
        return HfChatTokenizer(AutoTokenizer.from_pretrained(resolve_model(name)))
    return family_tokenizer(name, **({} if switch is None else {"enable_thinking": switch}))


@cache
def chat_of(name: str, switch: bool | None) -> ChatFormat:
    return ChatFormat(tokenizer_of(name, switch), name)


def texts(tokenizer: HfChatTokenizer) -> st.SearchStrategy[str]:
    """Texts of any characters, of blanks alone, empty, and with this tokenizer's own controls.

    SmolLM2 has no tokens for some bytes: characters that it can't spell are left out for it.
    """

    @cache
    def can_spell(character: str) -> bool:
        if tokenizer is not tokenizer_of("embedded", None):
            return True
        return tokenizer.decode(tokenizer.encode(character)) == character

    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\ue000\ue001")
    piece = st.one_of(
        st.text(characters, max_size=8),
        st.sampled_from(WORDS),
        st.sampled_from(sorted(tokenizer.control_texts)),
    )
    return st.lists(piece, max_size=8).map(lambda some: "".join(filter(can_spell, "".join(some))))


@st.composite
def dialogues(draw: st.DrawFn, tokenizer: HfChatTokenizer, ends: Sequence[int]) -> list[Message]:
    """[system,] then user and sampled turns in turn; any ids may have been sampled."""
    text = texts(tokenizer)
    messages = [Message("system", draw(text))] if draw(st.booleans()) else []
    control_ids = sorted(tokenizer.control_ids)
    ids = st.lists(
        st.one_of(st.integers(0, 48_000), st.sampled_from(control_ids)), min_size=1, max_size=6
    )
    for _ in range(draw(st.integers(1, 4))):
        sampled = draw(ids)
        stop = draw(st.sampled_from([StopReason.STOP, StopReason.LENGTH]))
        if stop is StopReason.STOP:
            sampled = [*sampled, draw(st.sampled_from(list(ends)))]
        messages += [
            Message("user", draw(text)),
            Message("assistant", "", tuple(sampled), stop, learned=draw(st.booleans())),
        ]
    return messages


def ends_of(name: str, tokenizer: HfChatTokenizer) -> list[int]:
    texts = END_TEXTS.get(name, ("<|im_end|>", "<|endoftext|>"))
    return [tokenizer.encode(text)[0] for text in texts]


@pytest.mark.parametrize(("name", "switches"), CASES)
def test_a_row_is_what_the_engine_saw_and_sampled(name: str, switches: dict[str, Any]) -> None:
    switch = switches.get("enable_thinking")
    chat, tokenizer = chat_of(name, switch), tokenizer_of(name, switch)

    @settings(max_examples=NUM_EXAMPLES)
    @given(dialogues(tokenizer, ends_of(name, tokenizer)))
    def check(messages: list[Message]) -> None:
        seen = seen_and_sampled(chat, messages)
        masked = chat.masked_ids(messages)
        # Where each sampled text stands: after its own prompt.
        learned = [0] * len(seen)
        for place, message in enumerate(messages):
            if message.token_ids is not None and message.learned:
                start = len(chat.prompt_ids(messages[:place]))
                learned[start : start + len(message.token_ids)] = [1] * len(message.token_ids)
        end = max((i for i, one in enumerate(learned) if one), default=len(seen) - 1) + 1
        assert masked.ids == seen[:end]
        assert list(masked.mask) == learned[:end]

    check()


@pytest.mark.parametrize(("name", "switches"), CASES)
def test_a_prompt_reads_as_the_template_wrote_it(name: str, switches: dict[str, Any]) -> None:
    """The engine reads the template's text, character by character, and no more control tokens
    than the template has where the users say nothing.
    """
    switch = switches.get("enable_thinking")
    chat, tokenizer = chat_of(name, switch), tokenizer_of(name, switch)

    @settings(max_examples=NUM_EXAMPLES)
    @given(dialogues(tokenizer, ends_of(name, tokenizer)), texts(tokenizer))
    def check(messages: list[Message], gold: str) -> None:
        first = [m for m in messages if m.token_ids is None][: 1 + (messages[0].role == "system")]
        written = tokenizer.render([{"role": m.role, "content": m.text} for m in first], True)
        prompt = chat.prompt_ids(first)
        assert tokenizer.decode(prompt, special=True) == as_read(name, written)
        silent = chat.prompt_ids([Message(m.role, "x") for m in first])
        controls = [i for i in prompt if i in tokenizer.control_ids]
        assert controls == [i for i in silent if i in tokenizer.control_ids]
        context, ids = chat.continuation(messages[:-1], gold)
        assert not set(ids) & tokenizer.control_ids
        whole = tokenizer.decode((*context, *ids), special=True)
        assert whole.endswith(as_read(name, gold.strip()))

    check()


def as_read(name: str, text: str) -> str:
    """A text as the family's tokenizer normalises it: what is lost there, no spelling can keep."""
    if name == "qwen3":
        return unicodedata.normalize("NFC", text)
    return text.replace("\u2581", " ") if name == "gemma3" else text
