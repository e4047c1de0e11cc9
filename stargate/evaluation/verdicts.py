"""What a judge decided: the last line "Final Response: A" or "B" of its text, or a JSON object.

Only the judge's own last line counts. An earlier one is thinking aloud, or a judged response that
tries to win by containing such a line. What is not clearly A, B, "neither" or "both" is
unparsable: it is counted and bounded (win_rate.py), never guessed and never dropped.
"""

import json
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

VerdictFormat = Literal["line", "json"]


class Verdict(StrEnum):
    """Which of the two responses, in the order in which they were shown."""

    A = "A"
    B = "B"
    TIE = "tie"
    UNPARSABLE = "unparsable"


# For servers that hold a model to a schema (OpenAI's response_format, vLLM's structured outputs).
VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"winner": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["winner"],
    "additionalProperties": False,
}

_LABEL = ["final", "response"]
_CHOICES = {
    ("a",): Verdict.A,
    ("b",): Verdict.B,
    ("response", "a"): Verdict.A,
    ("response", "b"): Verdict.B,
    ("neither",): Verdict.TIE,
    ("both",): Verdict.TIE,
}
_WINNERS = {"a": Verdict.A, "b": Verdict.B, "tie": Verdict.TIE}
# What may stand around words without changing them: markdown, straight and curly quotes, brackets.
_DECORATION = str.maketrans(
    dict.fromkeys("*_`#\"'[](){}\u2018\u2019\u201c\u201d\xab\xbb", " ")
    | dict.fromkeys("\u200b\ufeff", "")
)
# Only around the letter: a line that begins with ">" quotes somebody else.
_ANGLES = str.maketrans("<>", "  ")
# Characters; a verdict has some 20. A longer line is prose.
_MAX_LINE = 200


def parse_verdict(text: str, style: VerdictFormat = "line") -> Verdict:
    """The verdict in a judge's whole text. Never raises for any text."""
    return _parse_json(text) if style == "json" else _parse_line(text)


def _parse_line(text: str) -> Verdict:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or len(lines[-1]) > _MAX_LINE:
        return Verdict.UNPARSABLE
    label, colon, choice = _normal(lines[-1]).partition(":")
    if not colon and len(lines) > 1 and len(lines[-2]) <= _MAX_LINE:
        # "Final Response:" with the letter on a line of its own.
        choice = label
        label, colon, rest = _normal(lines[-2]).partition(":")
        if _words(rest):
            return Verdict.UNPARSABLE
    if not colon or _words(label) not in (_LABEL, ["-", *_LABEL]):
        return Verdict.UNPARSABLE
    words = _words(choice.translate(_ANGLES))
    if words and words[-1].endswith("."):
        words = _words(" ".join(words)[:-1])
    return _CHOICES.get(tuple(words), Verdict.UNPARSABLE)


def _normal(line: str) -> str:
    """Full-width letters and colons as the plain ones; look-alikes of other scripts stay."""
    return unicodedata.normalize("NFKC", line)


def _words(text: str) -> list[str]:
    return text.translate(_DECORATION).lower().split()


def _parse_json(text: str) -> Verdict:
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and len(body) >= 6:
        body = body[3:-3].removeprefix("json")
    try:
        answer = json.loads(body, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return Verdict.UNPARSABLE
    winner = answer.get("winner") if isinstance(answer, dict) else None
    if not isinstance(winner, str):
        return Verdict.UNPARSABLE
    return _WINNERS.get(winner.strip().lower(), Verdict.UNPARSABLE)


def _without_repeats(entries: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses {"winner": "A", "winner": "B"}, of which Python would take the last."""
    answer = dict(entries)
    if len(answer) != len(entries):
        raise ValueError("a key stands twice")
    return answer
