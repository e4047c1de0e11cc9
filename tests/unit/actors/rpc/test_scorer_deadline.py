"""A scorer that lives but never answers, with fakes and a clock that stands until it is moved."""

import asyncio
from typing import Any

import pytest

from stargate.actors.rpc.scorers import ScoreDeadline, ScorerHangs, ScorerPool
from stargate.config.run import ScorerConfig
from stargate.errors import EngineError
from stargate.types import ScoreRequest, ScoreResult
from tests.fakes.actor_slots import ActorGroup, FakeActor


class Clock:
    """`sleep` ends when the time that was asked for has been moved on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, woken))
        await woken

    async def move(self, seconds: float) -> None:
        await settle()
        self.now += seconds
        for until, woken in self._sleepers:
            if until <= self.now and not woken.done():
                woken.set_result(None)
        await settle()


async def settle() -> None:
    """Lets everything happen that waits for nothing but its turn."""
    for _ in range(30):
        await asyncio.sleep(0)


class HangingScorer(FakeActor):
    """Answers when it is asked how it is, never when it is asked to score."""

    async def do_score(self, requests: list[ScoreRequest]) -> list[ScoreResult]:
        await asyncio.Event().wait()
        raise AssertionError


def request(key: str, num_tokens: int) -> ScoreRequest:
    return ScoreRequest(key, (1,) * (num_tokens - 1), ((2,),))


def pool_with(actor_group: ActorGroup, clock: Clock) -> ScorerPool:
    return ScorerPool(
        actor_group.actors, actor_group.supervisor, ScoreDeadline(100.0, 10.0, clock.sleep)
    )


def test_the_deadline_grows_with_what_the_scorer_was_sent() -> None:
    actor_group, clock = ActorGroup(role="scorer"), Clock()
    actor_group.actors[0] = HangingScorer("scorer-0")

    async def run() -> None:
        pool = pool_with(actor_group, clock)
        calls = [asyncio.ensure_future(pool([request("a", 50)]))]
        await clock.move(1)
        calls.append(asyncio.ensure_future(pool([request("b", 100), request("c", 50)])))
        await clock.move(1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(run())
    # 100 s + 50 tokens at 10 tokens/s; the second call waits for the first one's tokens, too.
    assert clock.asked == [105.0, 120.0]


def test_a_scorer_that_hangs_is_replaced_and_its_requests_are_sent_again() -> None:
    actor_group, clock = ActorGroup(role="scorer"), Clock()
    hanging = actor_group.actors[0] = HangingScorer("scorer-0")

    async def run() -> list[ScoreResult]:
        pool = pool_with(actor_group, clock)
        scoring = asyncio.ensure_future(pool([request("a", 50), request("b", 50)]))
        await clock.move(109.0)
        assert actor_group.dismissed == [] and not scoring.done()
        await clock.move(2.0)
        return await asyncio.wait_for(scoring, 5)

    assert [result.key for result in asyncio.run(run())] == ["a", "b"]
    assert hanging.alive  # it would have gone on answering the watch
    assert actor_group.dismissed == ["scorer-0"]
    assert [actor.name for actor in actor_group.hired] == ["scorer-0'"]
    assert dict(actor_group.counters.restarts) == {"scorer": 1}
    assert actor_group.counters.resent == {"scorer": 2}
    assert actor_group.said[0] == (
        "scorer-0 died: scorer-0: no answer after 110 s, with 100 tokens to score "
        "(scorer.timeout_s, scorer.min_tokens_per_s); starting it again (restart 1 of 3)"
    )


def test_the_others_go_on_meanwhile() -> None:
    actor_group, clock = ActorGroup(role="scorer", count=2), Clock()
    actor_group.actors[0] = HangingScorer("scorer-0")

    async def run() -> list[list[ScoreResult]]:
        pool = pool_with(actor_group, clock)
        calls = [asyncio.ensure_future(pool([request(key, 100)])) for key in "ab"]
        await clock.move(1)
        assert [call.done() for call in calls] == [False, True]
        await clock.move(200)
        return await asyncio.wait_for(asyncio.gather(*calls), 5)

    asyncio.run(run())
    assert dict(actor_group.counters.restarts) == {"scorer": 1}


def test_one_that_hangs_too_often_stops_the_run() -> None:
    def prepare(actor: FakeActor) -> None:
        actor.do_score = HangingScorer("again").do_score  # type: ignore[attr-defined]

    actor_group, clock = ActorGroup(role="scorer", max_restarts=1, prepare=prepare), Clock()
    actor_group.actors[0] = HangingScorer("scorer-0")

    async def run() -> None:
        scoring = asyncio.ensure_future(pool_with(actor_group, clock)([request("a", 50)]))
        for _ in range(4):
            await clock.move(200)
        await asyncio.wait_for(scoring, 5)

    with pytest.raises(EngineError, match="scorer-0 died once more than"):
        asyncio.run(run())


def test_a_call_that_ends_in_time_costs_nothing_and_errors_stay_what_they_are() -> None:
    clock = Clock()
    deadline = ScoreDeadline(1.0, 1.0, clock.sleep)

    async def fail() -> Any:
        raise ValueError("its own")

    async def run() -> None:
        assert await deadline.watch(asyncio.sleep(0, "done"), "scorer-0", 5) == "done"
        with pytest.raises(ValueError, match="its own"):
            await deadline.watch(fail(), "scorer-0", 5)
        late = asyncio.ensure_future(deadline.watch(asyncio.Event().wait(), "scorer-0", 5))
        await clock.move(7)
        with pytest.raises(ScorerHangs, match="no answer after 6 s, with 5 tokens"):
            await late

    asyncio.run(run())
    assert ScoreDeadline.of(ScorerConfig()) == ScoreDeadline(600.0, 20.0, asyncio.sleep)
