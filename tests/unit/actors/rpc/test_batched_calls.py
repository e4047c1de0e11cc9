"""Requests that travel together and end apart: BatchedCaller and BatchedServer without Ray."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable

import pytest

from stargate.actors.rpc.batched_calls import BatchedCaller, BatchedServer, CallBatch, Delivery
from stargate.actors.rpc.remote import ActorDied
from stargate.errors import EngineError, RecordDropped
from tests.fakes.clock import run_at_once

ActorSlot = Callable[[CallBatch[str]], Awaitable[Delivery[str]]]


class Actor:
    """Ends a request "x" when `end("x")` is called; pickles what travels, as Ray does."""

    def __init__(self) -> None:
        self.batches: list[CallBatch[str]] = []
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.fatal: str | None = None
        self.dead = asyncio.Event()
        self._ends: dict[str, asyncio.Future[str]] = {}
        self._server: BatchedServer[str, str] = BatchedServer(self._work, lambda: self.fatal)

    async def _work(self, request: str) -> str:
        self.started.append(request)
        future = self._ends[request] = asyncio.get_running_loop().create_future()
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise

    def end(self, request: str) -> None:
        self._ends[request].set_result(request.upper())

    def fail(self, request: str, error: Exception) -> None:
        self._ends[request].set_exception(error)

    async def exchange(self, batch: CallBatch[str]) -> Delivery[str]:
        self.batches.append(batch)
        call = asyncio.ensure_future(self._server.exchange(pickle.loads(pickle.dumps(batch))))
        death = asyncio.ensure_future(self.dead.wait())
        await asyncio.wait({call, death}, return_when=asyncio.FIRST_COMPLETED)
        if self.dead.is_set():
            call.cancel()
            raise ActorDied("an actor died: killed")
        death.cancel()
        delivery: Delivery[str] = pickle.loads(pickle.dumps(call.result()))
        return delivery


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def sent(actor: Actor) -> list[list[str]]:
    return [[request for _, request in batch.requests] for batch in actor.batches]


async def test_requests_of_one_moment_travel_in_one_call_and_end_apart() -> None:
    actor = Actor()
    caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    a, b, c = (asyncio.ensure_future(caller(name)) for name in "abc")
    await settle()
    assert sent(actor) == [["a", "b", "c"]]
    actor.end("b")
    assert await b == "B"
    await settle()
    assert not a.done()
    assert not c.done()
    actor.end("a")
    actor.end("c")
    assert await asyncio.gather(a, c) == ["A", "C"]
    await settle()
    # One call brought all, one more waited for the others; none stays open.
    assert sent(actor) == [["a", "b", "c"], []]


async def test_a_lone_request_is_one_call() -> None:
    actor = Actor()
    caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    for name in "abc":
        request = asyncio.ensure_future(caller(name))
        await settle()
        actor.end(name)
        assert await request == name.upper()
    await settle()
    assert sent(actor) == [["a"], ["b"], ["c"]]


async def test_a_new_request_does_not_wait_for_the_open_call() -> None:
    actor = Actor()
    caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    slow = asyncio.ensure_future(caller("slow"))
    await settle()
    quick = asyncio.ensure_future(caller("quick"))
    await settle()
    assert actor.started == ["slow", "quick"]
    actor.end("quick")
    assert await quick == "QUICK"
    actor.end("slow")
    assert await slow == "SLOW"


def test_many_requests_under_way_share_calls() -> None:
    """A steady stream: one begins every 5 ms, and ends 0.2 s later, never when another begins."""

    async def scenario() -> None:
        async def work(request: str) -> str:
            await asyncio.sleep(0.2025)
            return request

        server: BatchedServer[str, str] = BatchedServer(work)
        caller: BatchedCaller[str, str] = BatchedCaller(server.exchange)
        requests = []
        for number in range(200):
            requests.append(asyncio.ensure_future(caller(str(number))))
            await asyncio.sleep(0.005)
        assert await asyncio.gather(*requests) == [str(number) for number in range(200)]
        assert caller.num_requests == 200
        assert caller.num_calls < 200 * 1.4  # unpaced: up to two calls a request

    run_at_once(scenario())


async def test_an_error_is_that_of_its_request_alone() -> None:
    actor = Actor()
    caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    a, b, c, d = (asyncio.ensure_future(caller(name)) for name in "abcd")
    await settle()
    actor.fail("a", RecordDropped("prompt_too_long", "a", "9 tokens"))
    actor.fail("b", EngineError("ended by 'abort'"))
    actor.fail("c", KeyError("x"))
    actor.end("d")
    with pytest.raises(RecordDropped, match="a: prompt_too_long: 9 tokens"):
        await a
    with pytest.raises(EngineError, match="ended by 'abort'"):
        await b
    with pytest.raises(EngineError, match="KeyError: 'x'"):
        await c
    assert await d == "D"


async def test_a_cancelled_request_is_cancelled_there() -> None:
    actor = Actor()
    caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    a, b = (asyncio.ensure_future(caller(name)) for name in "ab")
    await settle()
    a.cancel()
    await settle()
    assert actor.cancelled == ["a"]
    actor.end("b")
    assert await b == "B"
    await settle()
    assert not [call for call in asyncio.all_tasks() if call is not asyncio.current_task()]


def test_a_request_that_is_cancelled_before_it_was_sent_never_is() -> None:
    async def scenario() -> None:
        actor = Actor()
        caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
        many = [asyncio.ensure_future(caller(str(number))) for number in range(8)]
        await settle()
        caller._mean_seconds = 1.0  # so long that what comes now is held back for a moment
        late = asyncio.ensure_future(caller("late"))
        await settle()
        late.cancel()
        await asyncio.sleep(0.06)
        assert actor.started == [str(number) for number in range(8)]
        for number in range(8):
            actor.end(str(number))
        assert await asyncio.gather(*many) == [str(number) for number in range(8)]
        assert actor.cancelled == []

    run_at_once(scenario())


async def test_a_request_that_is_cancelled_as_it_arrives_does_not_keep_the_call_open() -> None:
    actor = Actor()
    server: BatchedServer[str, str] = BatchedServer(actor._work)
    first = asyncio.ensure_future(server.exchange(CallBatch("me", 1, [(0, "a")])))
    second = asyncio.ensure_future(server.exchange(CallBatch("me", 2, [], [0])))
    assert (await asyncio.wait_for(first, 1.0)).ended == []
    assert (await asyncio.wait_for(second, 1.0)).ended == []
    assert actor.started == []


async def test_clients_do_not_get_each_others_results() -> None:
    actor = Actor()
    mine: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    other: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    a, b = asyncio.ensure_future(mine("a")), asyncio.ensure_future(other("b"))
    await settle()
    actor.end("b")
    assert await b == "B"
    assert not a.done()
    actor.end("a")
    assert await a == "A"


async def test_what_a_dead_owner_asked_for_ends_when_it_is_back() -> None:
    actor = Actor()
    other: BatchedCaller[str, str] = BatchedCaller(actor.exchange, "dialogue-worker-1")
    driver: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    # The last call of a process that dies then: nobody asks any more.
    last = CallBatch("dialogue-worker-0/caller", 1, [(0, "lost")])
    lost = asyncio.ensure_future(actor.exchange(last))
    kept = asyncio.ensure_future(other("kept"))
    own = asyncio.ensure_future(driver("own"))
    await settle()
    assert actor.cancelled == []
    again: BatchedCaller[str, str] = BatchedCaller(actor.exchange, "dialogue-worker-0")
    new = asyncio.ensure_future(again("new"))
    await settle()
    assert actor.cancelled == ["lost"]
    for name in ("kept", "own", "new"):
        actor.end(name)
    assert await asyncio.gather(kept, own, new) == ["KEPT", "OWN", "NEW"]
    assert (await asyncio.wait_for(lost, 1.0)).ended == []


async def test_a_dead_actor_fails_what_is_under_way_and_what_comes_later() -> None:
    actor = Actor()
    caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    a, b = (asyncio.ensure_future(caller(name)) for name in "ab")
    await settle()
    actor.dead.set()
    for request in (a, b, asyncio.ensure_future(caller("c"))):
        with pytest.raises(ActorDied, match="an actor died: killed"):
            await request
    assert actor.started == ["a", "b"]


async def test_a_living_actor_that_can_work_no_more_is_as_good_as_dead() -> None:
    actor = Actor()
    caller: BatchedCaller[str, str] = BatchedCaller(actor.exchange)
    a, b, c = (asyncio.ensure_future(caller(name)) for name in "abc")
    await settle()
    actor.fatal = "vLLM's core died: KeyError"
    actor.end("a")  # had ended before
    actor.fail("b", EngineError(actor.fatal))
    assert await a == "A"
    for request in (b, c):
        with pytest.raises(ActorDied, match="vLLM's core died: KeyError"):
            await request


async def test_a_broken_call_is_heard_by_all() -> None:
    async def broken(batch: CallBatch[str]) -> Delivery[str]:
        raise ZeroDivisionError("a defect")

    caller: BatchedCaller[str, str] = BatchedCaller(broken)
    for result in await asyncio.gather(caller("a"), caller("b"), return_exceptions=True):
        assert isinstance(result, ZeroDivisionError)


@pytest.mark.parametrize(
    ("seconds", "num_busy", "pause"),
    [
        (1.0, 1, 0.04),  # a share of what a request takes
        (1.0, 4, 0.08),  # 50 calls per second of the whole pool
        (1.0, 20, 0.1),  # but never more than a tenth of a request ...
        (0.3, 4, 0.03),
        (60.0, 1, 0.1),  # ... nor than a tenth of a second
    ],
)
def test_many_busy_callers_pause_for_longer(seconds: float, num_busy: int, pause: float) -> None:
    async def scenario() -> float:
        caller: BatchedCaller[str, str] = BatchedCaller(Actor().exchange)
        caller._mean_seconds = seconds
        caller.num_busy = lambda: num_busy
        loop = asyncio.get_running_loop()
        caller._waiting = {key: loop.create_future() for key in range(8)}
        return caller._pace()

    assert asyncio.run(scenario()) == pytest.approx(pause)
