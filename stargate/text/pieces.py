"""A tokenizer that remembers: texts are cut where cutting changes no id, and pieces are kept.

    "<|im_start|>user\\nYou are ... about you. What do you like?<|im_end|>\\n<|im_start|>..."
     |special   |text, itself cut between sentences           |special   | ...

Two kinds of cuts:
- at special tokens, which a tokenizer takes out before anything else. Probed for each token, on
  both sides: not where it swallows spaces, or where beginnings of texts are marked (SentencePiece).
- between sentences, before the space, where the tokenizer works on words (`words_stand_alone`).

Most of a prompt has been there before, in the same dialogue or for the same persona.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

Ids = tuple[int, ...]

# Texts between two sampled messages, some kB each: two or three for each dialogue under way.
_MAX_TEXTS = 4096
# Sentences and what stands between special tokens, about 200 bytes each.
_MAX_PIECES = 32_768
# The end of a sentence; the next one begins with a space and an ASCII letter.
_SENTENCE = re.compile(r"(?<=[.?!:\"])(?= [A-Za-z])")
_AFTER = ("two words", " two", "\ntwo", "\n\ntwo", "  \n two")
_BEFORE = ("two words", "two ", "two\n", "two\n\n", "two \n ")


class Pieces:
    """`encode` with a memory: the same ids for every text."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        special_texts: Sequence[str],
        words_stand_alone: bool,
    ) -> None:
        self._encode = encode
        self._words_stand_alone = words_stand_alone
        self.special = special_pattern(special_texts)
        self.is_border = lru_cache(None)(self._probe_border)
        self.text = lru_cache(_MAX_TEXTS)(self._text_now)
        self._piece = lru_cache(_MAX_PIECES)(self._piece_now)
        self._sentence = lru_cache(_MAX_PIECES)(lambda text: tuple(encode(text)))

    def cut_after_last_special(self, text: str) -> int:
        """Where the text after the last special token begins, if it can stand alone; else 0."""
        found = list(self.special.finditer(text)) if self.special else []
        return found[-1].end() if found and self.is_border(found[-1][0]) else 0

    def _text_now(self, text: str) -> Ids:
        if self.special is None:
            return self._piece(text)
        ids: list[int] = []
        start = 0
        for found in self.special.finditer(text):
            if self.is_border(found[0]):
                ids += self._piece(text[start : found.start()])
                ids += self._piece(found[0])
                start = found.end()
        ids += self._piece(text[start:])
        return tuple(ids)

    def _piece_now(self, text: str) -> Ids:
        if not text:
            return ()
        if not self._words_stand_alone:
            return tuple(self._encode(text))
        ids: list[int] = []
        for sentence in _SENTENCE.split(text):
            ids += self._sentence(sentence)
        return tuple(ids)

    def _probe_border(self, special: str) -> bool:
        """Whether texts around a special token are encoded as if they stood alone. Not so where the
        tokenizer marks the beginning of a text, or where the token swallows the space beside it.
        """
        encode = self._encode
        return all(
            encode(f"one{special}{after}") == encode(f"one{special}") + encode(after)
            for after in _AFTER
        ) and all(
            encode(f"{before}{special}one") == encode(before) + encode(special) + encode("one")
            for before in _BEFORE
        )


def special_pattern(special_texts: Sequence[str]) -> re.Pattern[str] | None:
    """Finds special tokens in a text, the longest first; None where there are none."""
    texts = sorted((re.escape(text) for text in special_texts if text), key=len, reverse=True)
    return re.compile("|".join(texts)) if texts else None


# Patterns by which byte-level tokenizers find words: GPT-2's (also SmolLM's), Llama 3's, Qwen 2's.
# In none of them a word goes on over a space after another character, nor does a word's end depend
# on what follows that space.
_WORDS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def words_stand_alone(tokenizer: dict[str, Any]) -> bool:
    """Whether a text may be cut before a space that stands between another character and a letter.

    `tokenizer` is what a tokenizer.json holds; its vocabulary is not asked for. True only for
    byte-level BPE that finds its words by a known pattern: then no token spans such a place, and
    each side is encoded as if alone.
    """
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("dropout"):
        return False
    if (tokenizer.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return False
    if not all(map(_keeps_to_itself, tokenizer.get("added_tokens") or [])):
        return False
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [steps]
    return any(map(_finds_words, steps)) and all(map(_is_known_step, steps))


def _keeps_to_itself(added: dict[str, Any]) -> bool:
    looks_around = any(added.get(name) for name in ("single_word", "lstrip", "rstrip"))
    return not looks_around and not re.search(r"\s", added["content"])


def _finds_words(step: dict[str, Any]) -> bool:
    return bool(step.get("use_regex")) or step.get("type") == "Split"


def _is_known_step(step: dict[str, Any]) -> bool:
    match step.get("type"):
        case "Digits":
            return True
        case "ByteLevel":
            return not step.get("add_prefix_space")
        case "Split":
            known = (step.get("pattern") or {}).get("Regex") in _WORDS
            return known and step.get("behavior") == "Isolated" and not step.get("invert")
    return False
