"""Replicas, sessions, and what happens when an engine dies. No Ray: handles are faked."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from stargate.actors.rpc.batched_calls import BatchedServer, CallBatch, Delivery
from stargate.actors.rpc.remote import ActorDied
from stargate.actors.rpc.replica_pool import EnginePool, share_of
from stargate.errors import EngineError, MachineError, RecordDropped
from stargate.types import GenerateRequest, Generation, Sampling, StopReason
from tests.fakes.scripted import text_ids

SAMPLING = Sampling(0.0, 1.0, 20, seed=0)


def request(session: str, number: int = 0) -> GenerateRequest:
    return GenerateRequest(f"{session}/q{number}", session, (1, 2, 3), SAMPLING)


class FakeEngine:
    """Looks like an actor handle. Answers with its name; `hold` keeps requests under way."""

    def __init__(self, name: str, hold: bool = False) -> None:
        self.name = name
        self.requests: list[GenerateRequest] = []
        self.released = asyncio.Event()
        if not hold:
            self.released.set()
        self._dead = asyncio.Event()
        self._server = BatchedServer(self._generate)
        self.exchange = self  # handle.exchange.remote(batch)

    def kill(self) -> None:
        self._dead.set()

    async def remote(self, batch: CallBatch[GenerateRequest]) -> Delivery[Generation]:
        call = asyncio.ensure_future(self._server.exchange(batch))
        death = asyncio.ensure_future(self._dead.wait())
        await asyncio.wait({call, death}, return_when=asyncio.FIRST_COMPLETED)
        if self._dead.is_set():
            call.cancel()
            raise ActorDied(f"an actor died: {self.name}")
        death.cancel()
        return call.result()

    async def _generate(self, request: GenerateRequest) -> Generation:
        self.requests.append(request)
        await self.released.wait()
        if not request.prompt_ids:
            raise RecordDropped("prompt_empty", request.request_id, "the prompt has no tokens")
        return Generation(self.name, text_ids(self.name), StopReason.STOP, 0, 3)


async def texts(pool: EnginePool, *sessions: str) -> list[str]:
    generations = await asyncio.gather(*(pool(request(session)) for session in sessions))
    return [generation.text for generation in generations]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_new_sessions_go_to_the_least_loaded_and_stay_there() -> None:
    pool = EnginePool([FakeEngine("a"), FakeEngine("b")])
    assert Counter(await texts(pool, "1", "2", "3", "4")) == {"a": 2, "b": 2}
    first = await texts(pool, "1", "2")
    for _ in range(3):
        assert await texts(pool, "1", "2") == first


async def test_requests_of_many_dialogues_share_calls() -> None:
    pool = EnginePool([FakeEngine("a")])
    await texts(pool, *map(str, range(50)))
    assert pool.num_requests == 50
    assert pool.num_calls == 1


async def test_a_caller_keeps_to_its_own_replicas() -> None:
    engines = [FakeEngine(name) for name in "abcd"]
    pool = EnginePool(engines, home=[1, 3])
    assert set(await texts(pool, *map(str, range(8)))) == {"b", "d"}


async def test_a_request_at_fault_is_dropped_and_the_replica_stays() -> None:
    pool = EnginePool([FakeEngine("a")])
    empty = GenerateRequest("x/q0", "x", (), SAMPLING)
    with pytest.raises(RecordDropped, match="prompt_empty"):
        await pool(empty)
    assert await texts(pool, "x") == ["a"]


async def test_without_a_replacement_a_dead_engine_is_an_engine_error() -> None:
    engine = FakeEngine("a", hold=True)
    pool = EnginePool([engine])
    waiting = asyncio.ensure_future(pool(request("1")))
    await settle()
    engine.kill()
    with pytest.raises(EngineError, match="an actor died: a"):
        await waiting
    assert pool.num_resent == 0


async def test_requests_of_a_dead_engine_are_sent_again() -> None:
    """To the other one at once, and the replacement takes new sessions."""
    asked: list[tuple[int, str]] = []
    ready = asyncio.Event()

    async def replace(number: int, error: EngineError) -> Any:
        asked.append((number, str(error)))
        await ready.wait()
        return FakeEngine("c")

    dying, other = FakeEngine("a", hold=True), FakeEngine("b")
    pool = EnginePool([dying, other], replace=replace)
    waiting = [asyncio.ensure_future(pool(request(str(n)))) for n in range(6)]
    await settle()
    assert len(dying.requests) == 3
    dying.kill()
    assert [g.text for g in await asyncio.gather(*waiting)] == ["b"] * 6
    # What was under way is what is sent again: ids and seed, to the same text.
    assert {r.request_id for r in dying.requests} <= {r.request_id for r in other.requests}
    assert pool.num_resent == 3
    assert asked == [(0, "an actor died: a")]  # once, though three requests were lost
    ready.set()
    await settle()
    assert pool.num_replaced == 1
    assert set(await texts(pool, "new1", "new2")) == {"b", "c"}


async def test_the_only_engine_is_waited_for() -> None:
    async def replace(number: int, error: EngineError) -> Any:
        await asyncio.sleep(0.01)
        return FakeEngine("new")

    engine = FakeEngine("a", hold=True)
    pool = EnginePool([engine], replace=replace)
    waiting = asyncio.ensure_future(pool(request("1")))
    await settle()
    engine.kill()
    assert (await waiting).text == "new"
    assert await texts(pool, "1", "2") == ["new", "new"]


async def test_a_request_that_ends_every_engine_is_given_up() -> None:
    async def replace(number: int, error: EngineError) -> Any:
        successor = FakeEngine("next", hold=True)
        asyncio.get_running_loop().call_later(0.005, successor.kill)
        return successor

    engine = FakeEngine("a", hold=True)
    pool = EnginePool([engine], replace=replace)
    waiting = asyncio.ensure_future(pool(request("1")))
    await settle()
    engine.kill()
    with pytest.raises(EngineError, match="1: 4 actors died while they worked on it"):
        await waiting


async def test_when_no_replacement_comes_the_others_go_on_until_none_is_left() -> None:
    async def replace(number: int, error: EngineError) -> Any:
        raise MachineError("no memory for another engine")

    first, second = FakeEngine("a", hold=True), FakeEngine("b", hold=True)
    pool = EnginePool([first, second], replace=replace)
    waiting = [asyncio.ensure_future(pool(request(str(n)))) for n in range(2)]
    await settle()
    first.kill()
    await settle()
    assert len(second.requests) == 2
    second.kill()
    for lost in waiting:
        with pytest.raises(EngineError, match="none could be replaced: no memory for another"):
            await lost


async def test_a_defect_in_the_replacing_is_not_hidden() -> None:
    async def replace(number: int, error: EngineError) -> Any:
        raise ZeroDivisionError("a defect")

    engine = FakeEngine("a", hold=True)
    pool = EnginePool([engine], replace=replace)
    waiting = asyncio.ensure_future(pool(request("1")))
    await settle()
    engine.kill()
    with pytest.raises(ZeroDivisionError):
        await waiting


def test_callers_share_the_replicas_out() -> None:
    assert [share_of(worker, 2, 5) for worker in range(2)] == [[0, 2, 4], [1, 3]]
    assert [share_of(worker, 3, 2) for worker in range(3)] == [[0], [1], [0]]


async def test_one_that_joins_takes_new_sessions_and_old_ones_stay() -> None:
    pool = EnginePool([FakeEngine("a")])
    assert await texts(pool, "1", "2") == ["a", "a"]
    pool.join(FakeEngine("b"))
    assert pool.num_replicas == 2
    assert await texts(pool, "1", "2", "3", "4") == ["a", "a", "b", "b"]


async def test_one_that_leaves_ends_what_it_has_and_gets_nothing_more() -> None:
    staying, leaving = FakeEngine("a"), FakeEngine("b", hold=True)
    pool = EnginePool([staying, leaving])
    waiting = [asyncio.ensure_future(pool(request(str(n)))) for n in range(4)]
    await settle()
    assert len(leaving.requests) == 2
    sessions = [r.session for r in leaving.requests]
    drained = asyncio.ensure_future(pool.leave())
    await settle()
    assert pool.num_replicas == 1
    assert await texts(pool, *sessions, "new") == ["a", "a", "a"]  # its sessions have moved
    assert not drained.done()
    leaving.released.set()
    await drained
    assert Counter([g.text for g in await asyncio.gather(*waiting)]) == {"a": 2, "b": 2}
    assert len(leaving.requests) == 2
    assert pool.num_resent == 0
    # A later one in the same place does not inherit its sessions.
    pool.join(FakeEngine("c", hold=True))
    assert await texts(pool, *sessions) == ["a", "a"]


async def test_a_cancelled_request_keeps_nobody_from_leaving() -> None:
    pool = EnginePool([FakeEngine("a"), FakeEngine("b", hold=True)], home=[1])
    waiting = asyncio.ensure_future(pool(request("1")))
    await settle()
    drained = asyncio.ensure_future(pool.leave())
    await settle()
    assert not drained.done()
    waiting.cancel()
    await drained


@pytest.mark.parametrize("kept", [True, False])
async def test_the_others_do_what_one_owed_that_died_while_it_was_leaving(kept: bool) -> None:
    asked: list[int] = []

    async def replace(number: int, error: EngineError) -> Any:
        asked.append(number)

    dying = FakeEngine("b", hold=True)
    engines = [FakeEngine("a"), dying]
    pool = EnginePool(engines, home=[1], replace=replace if kept else None)
    waiting = [asyncio.ensure_future(pool(request(str(n)))) for n in range(2)]
    await settle()
    drained = asyncio.ensure_future(pool.leave())
    dying.kill()
    assert [g.text for g in await asyncio.gather(*waiting)] == ["a", "a"]
    await drained
    assert pool.num_resent == 2
    assert asked == []  # nobody takes the place of one that leaves


async def test_who_waits_for_a_dead_one_goes_to_one_that_joins() -> None:
    async def replace(number: int, error: EngineError) -> Any:
        await asyncio.Event().wait()

    engine = FakeEngine("a", hold=True)
    pool = EnginePool([engine], replace=replace)
    waiting = asyncio.ensure_future(pool(request("1")))
    await settle()
    engine.kill()
    await settle()
    assert not waiting.done()
    pool.join(FakeEngine("b"))
    assert (await waiting).text == "b"
