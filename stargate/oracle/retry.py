"""When to ask again: Retry-After as servers spell it, and exponential back-off with full jitter."""

import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the server asks to wait, or None if it asks for nothing that makes sense.

    Reads `retry-after-ms` (OpenAI, Azure) before `Retry-After`, which is seconds or an HTTP date
    (RFC 9110 10.2.3). A date in the past means now. `headers` must look names up without regard to
    case, `now` must know its zone.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:  # "-0000" and dates without a zone are in UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


def backoff_seconds(failures: int, first: float, longest: float, rng: random.Random) -> float:
    """A wait after `failures` >= 1 failures, drawn from 0 .. min(longest, first x 2^(failures-1)):
    full jitter.

    Full jitter spreads the retries of many clients best for the same work
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    # The exponent is bounded so that the power stays a small float; `longest` rules long before.
    return rng.uniform(0.0, min(longest, first * 2.0 ** min(failures - 1, 60)))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
