"""Rate limits of our own, so that the server's need not bite: token buckets for requests and tokens
per minute.

    acquire(estimated tokens) -> the call -> correct(estimated, actual)

Waiting is first come, first served. In any window of 60 s at most the configured number of requests
leaves: the buckets refill a little slower than the limit, by as much as a burst may take at once.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from stargate.config.oracle import LimitsConfig

_log = logging.getLogger("stargate.oracle")

# A waiter looks again at least this often (s): an answer may have given tokens back meanwhile.
_LONGEST_NAP_S = 0.25
# Waits longer than this (s) are spoken about.
_LONG_PAUSE_S = 10.0


class TokenBucket:
    """`capacity` units at most, refilled by `per_second`. Pure arithmetic: the caller brings the
    time (s).

    More than `capacity` units can be taken too, when the bucket is full: its level then goes below
    zero and whoever comes next waits for it.
    """

    def __init__(self, capacity: float, per_second: float, now: float) -> None:
        self.capacity = capacity
        self.per_second = per_second
        self._level = capacity
        self._filled_at = now

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until `amount` can be taken; 0 means now."""
        self._refill(now)
        missing = min(amount, self.capacity) - self._level
        # Below a millionth of a unit it is rounding, and a wait for it would never end.
        return missing / self.per_second if missing > 1e-6 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Takes `amount`; negative gives back what was not used."""
        self._refill(now)
        self._level = min(self.capacity, self._level - amount)

    def _refill(self, now: float) -> None:
        elapsed = max(0.0, now - self._filled_at)
        self._level = min(self.capacity, self._level + elapsed * self.per_second)
        self._filled_at = max(now, self._filled_at)


def bucket_per_minute(limit: int, burst_seconds: float, now: float) -> TokenBucket:
    """A bucket from which at most `limit` units leave in any 60 s, if each taking is of one unit.

    A full bucket of b and a refill of r per second let b + 60 r go in 60 s. The last unit of it
    comes at the very end of the window, so with b - 1 + 60 r = limit it belongs to the next. (Units
    taken many at a time, as tokens are, can exceed the limit by one taking.)
    """
    burst = max(1.0, limit * burst_seconds / 60)
    return TokenBucket(burst, (limit - burst + 1) / 60, now)


class RateLimiter:
    """Both buckets, and a pause that a server asked for with Retry-After. One per server and
    account.
    """

    def __init__(
        self,
        config: LimitsConfig,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        now = clock()
        burst = config.burst_seconds
        self._requests = (
            bucket_per_minute(config.requests_per_minute, burst, now)
            if config.requests_per_minute
            else None
        )
        self._tokens = (
            bucket_per_minute(config.tokens_per_minute, burst, now)
            if config.tokens_per_minute
            else None
        )
        self._clock = clock
        self._sleep = sleep
        self._paused_until = now
        self._line = asyncio.Lock()  # its waiters form a queue: first come, first served

    async def acquire(self, tokens: int) -> None:
        """Waits until a request of about `tokens` tokens may leave."""
        free = self._requests is None and self._tokens is None
        if free and self._paused_until <= self._clock():
            return
        async with self._line:
            while (wait := self._seconds_until(tokens)) > 0:
                await self._sleep(min(wait, _LONGEST_NAP_S))
            now = self._clock()
            if self._requests is not None:
                self._requests.take(1, now)
            if self._tokens is not None:
                self._tokens.take(tokens, now)

    def correct(self, estimated: int, actual: int) -> None:
        """After an answer: what it really took instead of what was thought."""
        if self._tokens is not None:
            self._tokens.take(actual - estimated, self._clock())

    def pause(self, seconds: float) -> None:
        """Nothing leaves for so long: a 429 is about the account, not about one request."""
        until = self._clock() + seconds
        if seconds >= _LONG_PAUSE_S and until > self._paused_until + 1:
            _log.warning("the server asks to wait %.0f s; nothing is sent until then", seconds)
        self._paused_until = max(self._paused_until, until)

    def _seconds_until(self, tokens: int) -> float:
        now = self._clock()
        waits = [self._paused_until - now]
        if self._requests is not None:
            waits.append(self._requests.seconds_until(1, now))
        if self._tokens is not None:
            waits.append(self._tokens.seconds_until(tokens, now))
        return max(waits)
