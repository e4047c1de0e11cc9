"""Golds are encoded once per pair where that gives the same ids, and only there."""

from collections.abc import Sequence

import pytest

from stargate.text.chat import ChatFormat, Message
from tests.fakes.scripted import ByteTokenizer

HI = Message("assistant", "hi", (104, 105, 4))
MESSAGES = [
    Message("user", "Hello"),
    Message("assistant", "hi", (104, 105, 4)),
    Message("user", "?"),
]


class Counting(ByteTokenizer):
    """Keeps the texts that were encoded with offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        return super().encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        self.texts.append(text)
        return super().encode_with_offsets(text)


class MarksBeginnings(Counting):
    """Writes a mark (7) before a text's first character, as SentencePiece writes its "▁"."""

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = super().encode_with_offsets(text)
        begins = bool(text) and not text.startswith(("<u>", "<a>", "<s>", "<e>"))
        return ([7] if begins else []) + ids, ([(0, 0)] if begins else []) + offsets


def whole(chat: ChatFormat, target: str) -> tuple[Sequence[int], Sequence[int]]:
    """The split without a cut at the border."""
    chat._pieces.is_border = lambda special: False  # type: ignore[assignment]
    return chat.continuation(MESSAGES, target)


@pytest.mark.parametrize("tokenizer", [Counting, MarksBeginnings])
def test_the_cut_changes_no_id(tokenizer: type[Counting]) -> None:
    for target in ("Dear you", " padded \n", "<e> broken up", "e"):
        cut = ChatFormat(tokenizer(), "bytes").continuation(MESSAGES, target)
        assert cut == whole(ChatFormat(tokenizer(), "bytes"), target)


def test_a_gold_is_encoded_once_for_all_dialogues() -> None:
    tokenizer = Counting()
    chat = ChatFormat(tokenizer, "bytes")
    for answer in ("one", "two", "three"):
        context, gold = chat.continuation([*MESSAGES[:2], Message("user", answer)], "Dear you")
        assert gold == tuple(map(ord, "Dear you"))
        assert context[-1] == 2  # <a>
    assert tokenizer.texts == ["Dear you"]


def test_where_the_beginning_of_a_text_is_marked_the_header_stays_with_the_gold() -> None:
    tokenizer = MarksBeginnings()
    chat = ChatFormat(tokenizer, "bytes")
    chat.continuation(MESSAGES, "Dear you")
    assert any(text.endswith("?<e>\n<a>Dear you") for text in tokenizer.texts)
