"""Rate limits of our own, so that the server's need not bite: aiolimiter's leaky buckets for
requests and tokens per minute, and the pause that a server asks for.

    acquire(estimated tokens) -> the call -> correct(estimated, actual)

Waiting is first come, first served. In any window of 60 s at most the configured number of requests
leaves: the buckets leak a little slower than the limit, by as much as a burst may take at once.
"""

import asyncio
import logging

from aiolimiter import AsyncLimiter

from stargate.config.oracle import LimitsConfig

_log = logging.getLogger("stargate.oracle")

# Pauses longer than this (s) are spoken about.
_LONG_PAUSE_S = 10.0


class RateLimiter:
    """Both buckets, and a pause that a server asked for with Retry-After. One per server and
    account. For one event loop, whose clock counts.
    """

    def __init__(self, config: LimitsConfig) -> None:
        self._requests = _per_minute(config.requests_per_minute, config.burst_seconds)
        self._tokens = _per_minute(config.tokens_per_minute, config.burst_seconds)
        self._owed = 0.0  # tokens that left and are in no bucket yet; < 0: thought, not taken
        self._paused_until = 0.0
        self._line = asyncio.Lock()  # its waiters form a queue: first come, first served

    async def acquire(self, tokens: int) -> None:
        """Waits until a request of about `tokens` tokens may leave."""
        async with self._line:
            if self._tokens is not None:
                while self._owed > 0:
                    await self._pay(self._tokens)
                self._owed += tokens
                await self._pay(self._tokens)  # of more than a bucket holds the rest stays owed
            await self._end_of_pause()
            if self._requests is not None:
                await self._requests.acquire()
                await self._end_of_pause()

    def correct(self, estimated: int, actual: int) -> None:
        """After an answer: what it really took instead of what was thought."""
        if self._tokens is not None:
            # What is left over fills a bucket once, however long nobody asks.
            self._owed = max(self._owed + actual - estimated, -self._tokens.max_rate)

    def pause(self, seconds: float) -> None:
        """Nothing leaves for so long: a 429 is about the account, not about one request."""
        until = asyncio.get_running_loop().time() + seconds
        if seconds >= _LONG_PAUSE_S and until > self._paused_until + 1:
            _log.warning("the server asks to wait %.0f s; nothing is sent until then", seconds)
        self._paused_until = max(self._paused_until, until)

    async def _pay(self, bucket: AsyncLimiter) -> None:
        part = min(max(self._owed, 0.0), bucket.max_rate)
        await bucket.acquire(part)
        self._owed -= part

    async def _end_of_pause(self) -> None:
        while (left := self._paused_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)


def _per_minute(limit: int | None, burst_seconds: float) -> AsyncLimiter | None:
    """A limiter with which at most `limit` units leave in any 60 s, if each taking is of one unit.

    A full bucket of b and a leak of r per second let b + 60 r go in 60 s. The last unit of it
    comes at the very end of the window, so with b - 1 + 60 r = limit it belongs to the next. (Units
    taken many at a time, as tokens are, can exceed the limit by one taking.)
    """
    if limit is None:
        return None
    burst = max(1.0, limit * burst_seconds / 60)
    return AsyncLimiter(burst, time_period=60 * burst / (limit - burst + 1))
