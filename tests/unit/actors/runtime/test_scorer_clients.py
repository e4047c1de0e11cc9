"""Scorers that die or hang, and score calls that travel together, with fakes for Ray's actors."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from stargate.actors.runtime.scorer_clients import (
    ActorHangs,
    GatheredScore,
    ScoreDeadline,
    ScorerPool,
)
from stargate.config.run import ScorerConfig
from stargate.errors import EngineError, RecordDropped
from stargate.types import ScoreRequest, ScoreResult
from tests.fakes.actor_slots import ActorGroup, Clock, FakeActor

DEADLINE = ScoreDeadline.of(ScorerConfig())


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


async def test_the_deadline_grows_with_what_the_scorer_was_sent() -> None:
    actor_group, clock = ActorGroup(role="scorer"), Clock()
    actor_group.actors[0] = HangingScorer("scorer-0")
    pool = pool_with(actor_group, clock)
    calls = [asyncio.ensure_future(pool([request("a", 50)]))]
    await clock.move(1)
    calls.append(asyncio.ensure_future(pool([request("b", 100), request("c", 50)])))
    await clock.move(1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
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


async def test_a_call_that_ends_in_time_costs_nothing_and_errors_stay_what_they_are() -> None:
    clock = Clock()
    deadline = ScoreDeadline(1.0, 1.0, clock.sleep)

    async def fail() -> Any:
        raise ValueError("its own")

    assert await deadline.watch(asyncio.sleep(0, "done"), "scorer-0", 5) == "done"
    with pytest.raises(ValueError, match="its own"):
        await deadline.watch(fail(), "scorer-0", 5)
    late = asyncio.ensure_future(deadline.watch(asyncio.Event().wait(), "scorer-0", 5))
    await clock.move(7)
    with pytest.raises(ActorHangs, match="no answer after 6 s, with 5 tokens"):
        await late
    assert ScoreDeadline(600.0, 20.0, asyncio.sleep) == DEADLINE


def test_a_dead_scorers_work_goes_to_the_others() -> None:
    actor_group = ActorGroup(role="scorer", count=2)
    first, second = actor_group.actors
    first.dies_in = "score"
    pool = ScorerPool(actor_group.actors, actor_group.supervisor, DEADLINE)

    async def run() -> list[ScoreResult]:
        results = await pool([request("a", 3), request("b", 3)])
        while not actor_group.counters.restarts:
            await asyncio.sleep(0)
        return results

    assert [result.key for result in asyncio.run(run())] == ["a", "b"]
    assert second.methods == ["score"]
    assert actor_group.counters.resent == {"scorer": 2}


def test_a_lone_scorer_is_waited_for() -> None:
    actor_group = ActorGroup(role="scorer")
    actor_group.actors[0].dies_in = "score"
    pool = ScorerPool(actor_group.actors, actor_group.supervisor, DEADLINE)

    async def run() -> list[list[ScoreResult]]:
        return await asyncio.gather(*(pool([request(key, 3)]) for key in "abc"))

    got = asyncio.run(run())
    assert [[result.key for result in results] for results in got] == [["a"], ["b"], ["c"]]
    assert len(actor_group.hired) == 1
    assert actor_group.hired[0].methods.count("score") == 3


def test_what_ends_every_scorer_is_given_up() -> None:
    actor_group = ActorGroup(
        role="scorer", max_restarts=99, prepare=lambda actor: setattr(actor, "dies_in", "score")
    )
    actor_group.actors[0].dies_in = "score"
    pool = ScorerPool(actor_group.actors, actor_group.supervisor, DEADLINE)
    with pytest.raises(EngineError, match="a and 0 more: 4 scorers died over them"):
        asyncio.run(pool([request("a", 3)]))


class Scores:
    """Ends its calls when `open`; refuses calls with a key "bad"; keeps the keys of each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.open = asyncio.Event()

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.calls.append([request.key for request in requests])
        await self.open.wait()
        if any(request.key == "bad" for request in requests):
            raise RecordDropped("empty_gold", "bad", "no gold")
        return [ScoreResult(r.key, ((float(len(r.context_ids)),),)) for r in requests]


def asked(*keys: str) -> list[ScoreRequest]:
    return [ScoreRequest(key, tuple(range(len(key))), ((1,),)) for key in keys]


def scored(*keys: str) -> list[ScoreResult]:
    return [ScoreResult(key, ((float(len(key)),),)) for key in keys]


async def test_few_calls_are_sent_at_once_and_many_together() -> None:
    scores = Scores()
    gathered = GatheredScore(scores)
    names = [(f"a{n}", f"bb{n}") for n in range(18)]
    tasks = [asyncio.create_task(gathered(asked(*pair))) for pair in names]
    await asyncio.sleep(0)
    assert scores.calls == [list(pair) for pair in names[:8]]
    scores.open.set()
    assert await asyncio.gather(*tasks) == [scored(*pair) for pair in names]
    assert [len(call) for call in scores.calls[8:]] == [8, 8, 4]  # 4, 4 and 2 calls of two
    assert gathered.num_calls == len(scores.calls) == 11
    assert await gathered(asked("x")) == scored("x")
    assert await gathered([]) == []
    assert scores.calls[11:] == [["x"]]


async def test_a_refused_call_is_refused_alone() -> None:
    scores = Scores()
    gathered = GatheredScore(scores)
    names = [f"k{n}" for n in range(8)] + ["good", "bad", "fine"]
    tasks = [asyncio.create_task(gathered(asked(name))) for name in names]
    scores.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[8] == scored("good")
    assert isinstance(results[9], RecordDropped)
    assert results[10] == scored("fine")


async def test_a_cancelled_call_holds_nobody_up() -> None:
    scores = Scores()
    gathered = GatheredScore(scores)
    tasks = [asyncio.create_task(gathered(asked(f"k{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    tasks[8].cancel()
    scores.open.set()
    assert await tasks[9] == scored("k9")
    with pytest.raises(asyncio.CancelledError):
        await tasks[8]
    assert scores.calls[8:] == [["k9"]]
