"""Text of data that can't be mistaken for what a chat template writes.

A tokenizer turns the spelling of an added token ("<think>", "<|eot_id|>") into that token, whoever
wrote it. So a text gets a cut inside each such spelling, and what stands between cuts is tokenised
by itself: the model reads the same characters, in ordinary tokens.

    "a <think> b" -> "a <" CUT "think> b"
"""

import re
from functools import lru_cache

from stargate.errors import RecordDropped
from stargate.text.tokenizer import ChatTokenizer

# Private-use characters: no template and no honest text contains them. The place of a sampled text
# is a number between them, a cut is both and nothing between.
HOLE_OPEN, HOLE_CLOSE = "\ue000", "\ue001"
CUT = HOLE_OPEN + HOLE_CLOSE
# Texts whose cuts are remembered, some kB each.
_MAX_TEXTS = 4096


class PlainText:
    """Cuts texts for one tokenizer.

    Added tokens are found by what the tokenizer makes of a text, not by their spelling: it may
    normalise first, or take neighbouring spaces in. Those that are blank, such as Gemma's for two
    line breaks, are how blanks are written, and stay.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        words = "|".join(map(re.escape, tokenizer.control_texts))
        self._suspect = re.compile("" if tokenizer.normalizes else words or r"(?!)")
        self.cut = lru_cache(_MAX_TEXTS)(self._cut_now)

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text that `cut` may have cut."""
        if CUT not in text:
            return tuple(self._tokenizer.encode(text))
        return tuple(self.ids_and_offsets(text)[0])

    def ids_and_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text that `cut` may have cut, with their characters in it."""
        first, *others = text.split(CUT)
        ids, offsets = self._tokenizer.encode_with_offsets(first)
        start = len(first) + len(CUT)
        for piece in others:
            more, places = self._tokenizer.encode_with_offsets(piece, goes_on=True)
            ids = ids + more
            offsets = offsets + [(a + start, b + start) for a, b in places]
            start += len(piece) + len(CUT)
        return ids, offsets

    def _cut_now(self, text: str) -> str:
        """Raises RecordDropped for a text that can't be spelled in ordinary tokens."""
        if HOLE_OPEN in text or HOLE_CLOSE in text:
            raise RecordDropped("reserved_character", text[:40], "contains U+E000 or U+E001")
        if self._suspect.search(text) is None:
            return text
        pieces = [text]
        number = 0
        while number < len(pieces):
            piece = pieces[number]
            at = self._first_control(piece, goes_on=number > 0)
            if at is None:
                number += 1
            else:
                pieces[number : number + 1] = [piece[:at], piece[at:]]
        if len(pieces) > 1 and not self._goes_on_as_it_is():
            problem = "it spells a control token, which this tokenizer can't write as plain text"
            raise RecordDropped("control_token", text[:40], problem)
        return CUT.join(pieces)

    def _first_control(self, piece: str, goes_on: bool) -> int | None:
        """Where to cut the first added token that the tokenizer sees in a text."""
        control_ids = self._tokenizer.control_ids
        ids, offsets = self._tokenizer.encode_with_offsets(piece, goes_on)
        for token_id, (start, end) in zip(ids, offsets, strict=True):
            if token_id in control_ids:
                if end - start < 2:
                    problem = f"the character {piece[start:end]!r} is a control token"
                    raise RecordDropped("control_token", piece[:40], problem)
                return start + 1
        return None

    def _goes_on_as_it_is(self) -> bool:
        """Whether the tokenizer adds no space to a text that is cut off another one."""
        before, _ = self._tokenizer.encode_with_offsets("x")
        after, _ = self._tokenizer.encode_with_offsets("y", goes_on=True)
        return self._tokenizer.decode([*before, *after]) == "xy"
