"""What went wrong with one attempt, and whether asking again makes sense.

may pass, asked again:  429, 408, 409, 425, 5xx, time-outs, broken connections, malformed answers
this request only:      a prompt that is too long or that a content filter stopped
the same for all:       400, 401, 402, 403, 404, ..., redirects, an exhausted quota: the run stops
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from stargate.oracle.api_key import ApiKey
from stargate.oracle.records import AnswerStatus

# Besides 5xx: request time-out, conflict, too early, too many requests.
_PASSING = frozenset((408, 409, 425, 429))
_MAX_EXCERPT_CHARS = 240
# Who asks to wait longer than a year does not mean it.
_LONGEST_WAIT_S = 366 * 86_400.0
_TOO_LONG_WORDS = ("context_length_exceeded", "maximum context length", "max_model_len")


class FailureKind(StrEnum):
    """Why an attempt brought no reply."""

    RATE_LIMIT = "rate_limit"
    SERVER = "server"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    MALFORMED = "malformed"
    REJECTED = "rejected"  # asking the same again would bring the same


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt. `detail` is one line without secrets; `retry_after` (s) is what the
    server asked for.
    """

    kind: FailureKind
    detail: str
    may_be_billed: bool
    retry_after: float | None = None
    http_status: int | None = None
    status: AnswerStatus = AnswerStatus.FAILED

    @property
    def may_pass(self) -> bool:
        return self.kind is not FailureKind.REJECTED


def failure_of_status(
    code: int, headers: Mapping[str, str], body: bytes, now: datetime, key: ApiKey
) -> Failure:
    """What an HTTP status other than 200 means."""
    error = _error_object(body)
    message = _message(error, body)
    detail = key.mask(f"HTTP {code}: {message}" if message else f"HTTP {code}")
    detail = detail[:_MAX_EXCERPT_CHARS]
    kind, status = FailureKind.REJECTED, AnswerStatus.FAILED
    if code in _PASSING or code >= 500:
        kind = FailureKind.RATE_LIMIT if code == 429 else FailureKind.SERVER
        # A quota that is used up does not come back by waiting, whatever the status code says.
        if error.get("code") == "insufficient_quota" or error.get("type") == "insufficient_quota":
            kind = FailureKind.REJECTED
    elif code == 400 and error.get("code") == "content_filter":
        status = AnswerStatus.FILTERED
    elif code in (400, 413) and _is_too_long(error):
        status = AnswerStatus.TOO_LONG
    return Failure(
        kind,
        detail,
        may_be_billed=False,
        retry_after=parse_retry_after(headers, now),
        http_status=code,
        status=status,
    )


def status_of(code: int, body: bytes) -> int:
    """The status of an answer: of a 200 whose body is an error with another one, that of the error,
    as proxies send what the server behind them said.
    """
    if code != 200 or b'"error"' not in body:
        return code
    error = _error_object(body)
    said = error.get("code", error.get("status"))
    if isinstance(said, int) and 400 <= said < 600 and "choices" not in error:
        return said
    return code


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the server asks to wait, or None if it asks for nothing that makes sense.

    Reads `retry-after-ms` (OpenAI, Azure) before `Retry-After`, which is seconds or an HTTP date
    (RFC 9110 10.2.3). A date in the past means now. `headers` must look names up without regard to
    case, `now` must know its zone.
    """
    for name, units_per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(ValueError):
            units = float(headers.get(name, ""))
            if 0 <= units <= _LONGEST_WAIT_S * units_per_second:
                return units / units_per_second
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000" and dates without a zone are in UTC
        date = date.replace(tzinfo=UTC)
    seconds = (date - now).total_seconds()
    return max(0.0, seconds) if seconds <= _LONGEST_WAIT_S else None


def _error_object(body: bytes) -> dict[str, Any]:
    """The error of an OpenAI-like body {"error": {...}}, or {}."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = tree.get("error", tree) if isinstance(tree, dict) else None
    return error if isinstance(error, dict) else {}


def _message(error: Mapping[str, Any], body: bytes) -> str:
    """What the server says, on one line."""
    text = error.get("message")
    if not isinstance(text, str):
        text = body[: 4 * _MAX_EXCERPT_CHARS].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def _is_too_long(error: Mapping[str, Any]) -> bool:
    said = f"{error.get('code')} {error.get('message')}"
    return any(word in said for word in _TOO_LONG_WORDS)
