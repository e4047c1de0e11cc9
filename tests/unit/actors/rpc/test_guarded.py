"""What a run calls its actors by: only texts that it believes in, and nobody waits for ever."""

import asyncio
from typing import Any

import pytest

from stargate.actors.rpc.clients import GuardedPool, GuardedWorkers
from stargate.errors import EngineError
from stargate.types import (
    DialoguePlan,
    GenerateRequest,
    Generation,
    Sampling,
)
from tests.fakes.actor_slots import ActorGroup
from tests.fakes.scripted import make_pair


def test_a_text_by_other_weights_than_believed_is_refused() -> None:
    actor_group = ActorGroup()
    actor_group.supervisor.weights.current = ("models/m2", 2)
    pool = GuardedPool("questioner", actor_group.actors, actor_group.supervisor)
    request = GenerateRequest("t2/a:b/0/q0", "s", (1,), Sampling(0.0, 1.0, 1, 0))

    async def run() -> None:
        with pytest.raises(EngineError) as caught:
            await pool(request)
        assert str(caught.value) == (
            "t2/a:b/0/q0: written by weights version 0, but the questioner's engines should hold 2"
        )
        actor_group.actors[0].version = 3
        with actor_group.supervisor.weights.pushing("models/m3", 3):
            assert (await pool(request)).policy_version == 3
        assert (await pool(request)).policy_version == 3

    asyncio.run(run())


def test_requests_to_a_dead_engine_are_sent_again_and_counted() -> None:
    actor_group = ActorGroup(role="roleplayer")
    actor_group.actors[0].dies_in = "exchange"
    pool = GuardedPool("roleplayer", actor_group.actors, actor_group.supervisor)
    requests = [GenerateRequest(f"r{n}", f"s{n}", (1,), Sampling(0.0, 1.0, 1, 0)) for n in range(3)]

    async def run() -> list[Generation]:
        return await asyncio.gather(*map(pool, requests))

    assert [g.text for g in asyncio.run(run())] == ["roleplayer-0'"] * 3
    assert actor_group.counters.resent == {"roleplayer": 3}
    assert "load_weights" not in actor_group.hired[0].methods


def test_dialogues_in_workers_end_when_somebody_died_too_often() -> None:
    """A worker waits for a dead engine's successor; when there will be none, the driver must not
    wait with it.
    """
    actor_group = ActorGroup(role="dialogue-worker")

    async def never(batch: Any) -> None:
        await asyncio.Event().wait()

    actor_group.actors[0].do_exchange = never  # type: ignore[method-assign]
    play = GuardedWorkers(actor_group.actors, actor_group.supervisor)

    async def run() -> None:
        plans = [DialoguePlan(f"t0/a:b/{n}", make_pair(), n, 1, 0) for n in range(3)]
        playing = [asyncio.create_task(play(plan)) for plan in plans]
        await asyncio.sleep(0.01)
        playing[2].cancel()  # that is no failure
        with pytest.raises(asyncio.CancelledError):
            await playing[2]
        await actor_group.supervisor.close()  # sets a failure, as too many deaths do
        for one in playing[:2]:
            with pytest.raises(EngineError, match="the run's actors are being ended"):
                await one
            assert not one.cancelling()
        with pytest.raises(EngineError, match="the run's actors are being ended"):
            await play(plans[2])
        await actor_group.supervisor.close()  # once more: nobody is left to be ended

    asyncio.run(run())


def test_a_limit_of_the_work_itself_is_no_failure() -> None:
    actor_group = ActorGroup(role="dialogue-worker")

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with actor_group.supervisor.failure.ends():
                await asyncio.wait_for(asyncio.Event().wait(), 0.001)
        async with actor_group.supervisor.failure.ends():
            await asyncio.sleep(0)

    asyncio.run(run())
    assert actor_group.supervisor.failure.error is None
    assert not actor_group.supervisor.failure._limits
