"""What a judge decided: the last line "Final Response: A" or "B" of its text, or a JSON object.

Only the judge's own last line counts. An earlier one is thinking aloud, or a judged response that
tries to win by containing such a line. What is not clearly A, B, "neither" or "both" is
unparsable: it is counted and bounded (win_rate.py), never guessed and never dropped.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

from stargate.text.reasoning import spoken_part

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
    "a": Verdict.A,
    "b": Verdict.B,
    "neither": Verdict.TIE,
    "both": Verdict.TIE,
    "neither a nor b": Verdict.TIE,
    "neither b nor a": Verdict.TIE,
    "both a and b": Verdict.TIE,
    "both b and a": Verdict.TIE,
}
_WINNERS = {"a": Verdict.A, "b": Verdict.B, "tie": Verdict.TIE}
# What may stand around words without changing them: markdown, straight and curly quotes, brackets.
_DECORATION = str.maketrans(
    dict.fromkeys("*_`#$\"'[](){}\u2018\u2019\u201c\u201d\xab\xbb", " ")
    | dict.fromkeys("\u200b\ufeff", "")
)
# As models of mathematics write a result: \[ \boxed{\text{A}} \]. A box needs no label.
_LATEX = re.compile(r"\\(?:(?:boxed|text|textbf|mathrm|mathbf)\b|[\[\]()])")
_BOXED = re.compile(r"[\s$*\\\[(]*\\boxed\b")
# A remark behind the choice. It may not name a response itself: "A (or B)" is not clear.
_REMARK = re.compile(r"(?<=[^\s(])\s+\((?P<said>[^()]*)\)(?P<rest>[\s.*_]*)$")
_NAMES_ONE = re.compile(r"\b(A|B|[Bb]oth|[Nn]either|[Tt]ie)\b")
# Only around the letter: a line that begins with ">" quotes somebody else.
_ANGLES = str.maketrans("<>", "  ")
# Characters; a verdict has some 20. A longer line is prose.
_MAX_LINE = 200


def parse_verdict(text: str, style: VerdictFormat = "line") -> Verdict:
    """The verdict in a judge's whole text, after its reasoning. Never raises for any text."""
    said = spoken_part(text) or ""
    return _parse_json(said) if style == "json" else _parse_line(said)


def _parse_line(text: str) -> Verdict:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or len(lines[-1]) > _MAX_LINE:
        return Verdict.UNPARSABLE
    label, colon, choice = _normal(lines[-1]).partition(":")
    if not colon and _BOXED.match(lines[-1]):
        return _CHOICES.get(_chosen(label), Verdict.UNPARSABLE)
    if not colon and len(lines) > 1 and len(lines[-2]) <= _MAX_LINE:
        # "Final Response:" with the letter on a line of its own.
        choice = label
        label, colon, rest = _normal(lines[-2]).partition(":")
        if _words(rest):
            return Verdict.UNPARSABLE
    if not colon or _words(label) not in (_LABEL, ["-", *_LABEL]):
        return Verdict.UNPARSABLE
    return _CHOICES.get(_chosen(choice), Verdict.UNPARSABLE)


def _chosen(choice: str) -> str:
    """The words of a choice that count, in lower case."""
    remark = _REMARK.search(choice)
    if remark is not None and not _NAMES_ONE.search(remark["said"]):
        choice = choice[: remark.start()] + remark["rest"]
    words = " ".join(_words(choice.translate(_ANGLES))).removesuffix(".").rstrip()
    return re.sub(r"\bresponse (?=[ab]\b)", "", words)


def _normal(line: str) -> str:
    """Full-width letters and colons as the plain ones, without LaTeX; look-alikes of other scripts
    stay.
    """
    return _LATEX.sub(" ", unicodedata.normalize("NFKC", line))


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
