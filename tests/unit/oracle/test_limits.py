"""Token buckets with a clock of our own."""

import asyncio

import pytest

from stargate.config.oracle import LimitsConfig
from stargate.oracle.limits import RateLimiter, TokenBucket, bucket_per_minute


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def test_bucket_arithmetic() -> None:
    bucket = TokenBucket(capacity=10, per_second=2, now=0)
    assert bucket.seconds_until(10, 0) == 0
    bucket.take(10, 0)
    assert bucket.seconds_until(1, 0) == 0.5
    assert bucket.seconds_until(4, 1) == 1.0  # 2 came back, 2 are missing
    assert bucket.seconds_until(4, 2) == 0
    bucket.take(4, 2)
    assert bucket.seconds_until(10, 1000) == 0  # never fuller than its capacity
    bucket.take(10, 1000)
    assert bucket.seconds_until(2, 1000) == 1.0


def test_bucket_gives_back_and_goes_into_debt() -> None:
    bucket = TokenBucket(capacity=10, per_second=1, now=0)
    bucket.take(25, 0)  # more than it holds, as it was full: 15 in debt
    assert bucket.seconds_until(1, 0) == 16
    bucket.take(-20, 0)
    assert bucket.seconds_until(5, 0) == 0
    assert bucket.seconds_until(6, 0) == 1
    bucket.take(-1000, 0)
    assert bucket.seconds_until(10, 0) == 0
    bucket.take(10, 0)
    assert bucket.seconds_until(1, 0) == 1  # what was given back did not overfill it


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 600, 10_000])
def test_no_minute_has_more_requests_than_the_limit(limit: int) -> None:
    clock = Clock()
    bucket = bucket_per_minute(limit, 1.0, clock.now)
    times = []
    for _ in range(3 * limit + 5):
        clock.now += bucket.seconds_until(1, clock.now)
        bucket.take(1, clock.now)
        times.append(clock.now)
    gaps = [later - first for first, later in zip(times, times[limit:], strict=False)]
    assert min(gaps) >= 60 - 1e-3  # request i + limit leaves a minute after request i
    assert min(gaps) < 60 * 1.1 + 1  # and hardly later: the limit is used


def limiter(clock: Clock, **limits: float) -> RateLimiter:
    return RateLimiter(LimitsConfig(**limits), clock, clock.sleep)


def test_without_limits_nothing_waits() -> None:
    clock = Clock()
    unlimited = limiter(clock)

    async def run() -> None:
        for _ in range(100):
            await unlimited.acquire(10**9)

    asyncio.run(run())
    assert clock.now == 1000


def test_requests_wait_in_order() -> None:
    clock = Clock()
    order: list[int] = []

    async def run() -> None:
        limited = limiter(clock, requests_per_minute=60)

        async def one(index: int) -> None:
            await limited.acquire(1)
            order.append(index)

        await asyncio.gather(*(one(index) for index in range(10)))

    asyncio.run(run())
    assert order == list(range(10))
    assert clock.now == pytest.approx(1009, abs=0.01)  # the first at once, then one each second


def test_tokens_are_corrected_after_the_answer() -> None:
    clock = Clock()

    async def run() -> None:
        # A burst of 100 tokens, then 5901 / 60 = 98.35 per second.
        limited = limiter(clock, tokens_per_minute=6000)
        await limited.acquire(100)
        limited.correct(100, 40)  # 60 were not used after all
        await limited.acquire(60)
        assert clock.now == 1000
        limited.correct(60, 100)  # 40 more than thought
        await limited.acquire(10)

    asyncio.run(run())
    assert clock.now == pytest.approx(1000 + 50 / 98.35)


def test_a_pause_holds_everybody() -> None:
    clock = Clock()

    left: list[float] = []

    async def run() -> None:
        limited = limiter(clock)
        limited.pause(5)
        limited.pause(2)  # a shorter one does not shorten it

        async def one() -> None:
            await limited.acquire(1)
            left.append(clock.now)

        await asyncio.gather(one(), one(), one())

    asyncio.run(run())
    assert left == [1005, 1005, 1005]
