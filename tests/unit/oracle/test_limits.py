"""Rate limits, on a clock of our own."""

import asyncio

import pytest

from stargate.config.oracle import LimitsConfig
from stargate.oracle.limits import RateLimiter
from tests.fakes.clock import run_at_once


def times_of(amounts: list[int], **limits: float) -> list[float]:
    """When each of requests with so many tokens leaves (s), asked for side by side."""
    left: list[tuple[int, float]] = []

    async def run() -> None:
        limiter = RateLimiter(LimitsConfig(**limits))

        async def one(index: int, tokens: int) -> None:
            await limiter.acquire(tokens)
            left.append((index, asyncio.get_running_loop().time()))

        await asyncio.gather(*(one(index, tokens) for index, tokens in enumerate(amounts)))

    run_at_once(run())
    assert [index for index, _ in left] == list(range(len(amounts)))  # first come, first served
    return [time for _, time in left]


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 600, 10_000])
def test_no_minute_has_more_requests_than_the_limit(limit: int) -> None:
    times = times_of([1] * (2 * limit + 5), requests_per_minute=limit)
    gaps = [later - first for first, later in zip(times, times[limit:], strict=False)]
    assert min(gaps) >= 60 - 1e-3  # request i + limit leaves a minute after request i
    assert min(gaps) < 60 * 1.1 + 1  # and hardly later: the limit is used


def test_without_limits_nothing_waits() -> None:
    assert max(times_of([10**9] * 100)) < 1e-6


def test_requests_leave_one_each_second() -> None:
    assert times_of([1] * 10, requests_per_minute=60) == pytest.approx(range(10), abs=0.01)


def test_more_tokens_than_a_burst_leave_at_once_and_the_next_waits_for_them() -> None:
    # A burst of 100 tokens, then 5901 / 60 = 98.35 per second.
    times = times_of([250, 100, 10], tokens_per_minute=6000)
    assert times == pytest.approx([0, 250 / 98.35, 260 / 98.35], abs=1e-6)


def test_tokens_are_corrected_after_the_answer() -> None:
    async def run() -> None:
        limiter = RateLimiter(LimitsConfig(tokens_per_minute=6000))
        clock = asyncio.get_running_loop().time
        await limiter.acquire(100)
        limiter.correct(100, 40)  # 60 were not used after all
        await limiter.acquire(60)
        assert clock() < 1e-6
        limiter.correct(60, 100)  # 40 more than thought
        await limiter.acquire(10)
        assert clock() == pytest.approx(50 / 98.35, abs=1e-6)
        limiter.correct(10_000, 0)  # what was given back does not overfill
        await limiter.acquire(100)
        assert clock() == pytest.approx(50 / 98.35, abs=1e-6)
        await limiter.acquire(100)
        assert clock() == pytest.approx(150 / 98.35, abs=1e-6)

    run_at_once(run())


def test_a_pause_holds_everybody() -> None:
    async def run() -> list[float]:
        limiter = RateLimiter(LimitsConfig())
        limiter.pause(5)
        limiter.pause(2)  # a shorter one does not shorten it
        left: list[float] = []

        async def one() -> None:
            await limiter.acquire(1)
            left.append(asyncio.get_running_loop().time())

        await asyncio.gather(one(), one(), one())
        return left

    assert run_at_once(run()) == pytest.approx([5, 5, 5])
