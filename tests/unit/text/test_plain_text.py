"""Texts that spell control tokens, in tokenizers of every make: small ones, built here."""

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stargate.errors import RecordDropped
from stargate.text.chat import ChatFormat, Message
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.text.plain_text import PlainText

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


def byte_level(*more: AddedToken, normalizer: Any = None, **flags: bool) -> HfChatTokenizer:
    """Every byte a token, no merges. `flags` are those of the template's own tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return adapted(tokenizer, more, normalizer, flags)


def metaspace(prepend: str) -> HfChatTokenizer:
    """One token per character, "\u2581" for a space, as SentencePiece has it."""
    letters = ["<unk>", "\u2581", *map(chr, range(33, 127)), "\n"]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [], unk_token="<unk>"))
    if prepend == "normalizer":
        normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return adapted(tokenizer, (), normalizer, {})
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend, split=False)
    return adapted(tokenizer, (), None, {})


def adapted(tokenizer: Any, more: Any, normalizer: Any, flags: Any) -> HfChatTokenizer:
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, **flags) for text in ROLES])
    tokenizer.add_tokens(list(more))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return HfChatTokenizer(fast)


def think(**flags: bool) -> AddedToken:
    return AddedToken("<think>", **({"normalized": False} | flags))


LOWER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
KINDS = {
    "not special": (byte_level(think(special=False)), "a <think> b"),
    "special": (byte_level(think(special=True)), "a<think><think>b"),
    "one in another": (byte_level(think(), AddedToken("k>x", normalized=False)), "<think>x"),
    "takes spaces in": (byte_level(think(lstrip=True, rstrip=True)), "a   <think>   b"),
    "whole words": (byte_level(AddedToken("tool", single_word=True, normalized=False)), "a tool b"),
    "metaspace, first": (metaspace("first"), "a <|end|> b"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_read_as_it_is_written(kind: str) -> None:
    tokenizer, text = KINDS[kind]
    assert set(tokenizer.encode(text)) & tokenizer.control_ids  # what would be made of it
    ids = PlainText(tokenizer).ids(PlainText(tokenizer).cut(text))
    assert not set(ids) & tokenizer.control_ids
    assert tokenizer.decode(ids) == text
    prompt = ChatFormat(tokenizer, kind).prompt_ids([Message("user", text)])
    assert len(set(prompt) & tokenizer.control_ids) == 3


def test_what_the_tokenizer_normalises_is_no_control_token_either() -> None:
    tokenizer = byte_level(think(normalized=True), normalizer=LOWER)
    for text in ("<THINK>", "\uff1cthink\uff1e"):
        assert tokenizer.encode(text) == tokenizer.encode("<think>")
        plain = PlainText(tokenizer)
        assert tokenizer.decode(plain.ids(plain.cut(text))) == "<think>"
        assert not set(plain.ids(plain.cut(text))) & tokenizer.control_ids


def test_a_text_without_such_words_is_encoded_in_one_piece() -> None:
    plain = PlainText(byte_level(think()))
    assert plain.cut("a < think > b") == "a < think > b"


@pytest.mark.parametrize(
    ("tokenizer", "text", "why"),
    [
        (byte_level(AddedToken("\u00a7", normalized=False)), "see \u00a75", "the character"),
        (metaspace("normalizer"), "a <|end|> b", "can't write as plain text"),
        (metaspace("always"), "a <|end|> b", "can't write as plain text"),
    ],
    ids=["one character", "prefix by normalizer", "prefix always"],
)
def test_what_cannot_be_spelled_is_dropped(tokenizer: Any, text: str, why: str) -> None:
    with pytest.raises(RecordDropped, match=why) as dropped:
        ChatFormat(tokenizer, "odd").prompt_ids([Message("user", text)])
    assert dropped.value.reason == "control_token"


@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}])
def test_a_template_whose_tokens_take_blanks_in_keeps_the_first_prompt(flags: Any) -> None:
    """Its own line break after a role is gone, as the engine would have it."""
    tokenizer = byte_level(**flags)
    chat = ChatFormat(tokenizer, "odd")
    user, question = Message("user", " hi "), Message("assistant", "", (5, 6, *chat.stop_ids))
    first = chat.prompt_ids([user])
    second = chat.prompt_ids([user, question, Message("user", "so")])
    assert second[: len(first) + 3] == (*first, 5, 6, *chat.stop_ids)
    assert chat.masked_ids([user, question]).ids == (*first, 5, 6, *chat.stop_ids)
