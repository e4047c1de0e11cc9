"""Score calls that travel together end as if each had travelled alone."""

import asyncio
from collections.abc import Sequence

import pytest

from stargate.actors.rpc.scorers import GatheredScore
from stargate.errors import RecordDropped
from stargate.types import ScoreRequest, ScoreResult


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


def test_few_calls_are_sent_at_once_and_many_together() -> None:
    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_a_refused_call_is_refused_alone() -> None:
    async def scenario() -> None:
        scores = Scores()
        gathered = GatheredScore(scores)
        names = [f"k{n}" for n in range(8)] + ["good", "bad", "fine"]
        tasks = [asyncio.create_task(gathered(asked(name))) for name in names]
        scores.open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[8] == scored("good")
        assert isinstance(results[9], RecordDropped)
        assert results[10] == scored("fine")

    asyncio.run(scenario())


def test_a_cancelled_call_holds_nobody_up() -> None:
    async def scenario() -> None:
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

    asyncio.run(scenario())
