"""Engines, workers, trainer and pushes when an actor dies; only texts that the run believes in."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from stargate.actors.runtime import clients as pool_module
from stargate.actors.runtime.clients import (
    GuardedPool,
    GuardedWorkers,
    TrainerGroup,
)
from stargate.actors.runtime.weight_pusher import WeightPusher
from stargate.errors import DivergenceError, EngineError
from stargate.monitoring.progress import PlainProgress
from stargate.types import DialoguePlan, GenerateRequest, Generation, Sampling
from tests.fakes.actor_slots import GONE, ActorGroup
from tests.fakes.scripted import make_pair


async def test_a_text_by_other_weights_than_believed_is_refused() -> None:
    actor_group = ActorGroup()
    actor_group.supervisor.weights.current = ("models/m2", 2)
    pool = GuardedPool("questioner", actor_group.actors, actor_group.supervisor)
    request = GenerateRequest("t2/a:b/0/q0", "s", (1,), Sampling(0.0, 1.0, 1, 0))
    with pytest.raises(EngineError) as caught:
        await pool(request)
    assert str(caught.value) == (
        "t2/a:b/0/q0: written by weights version 0, but the questioner's engines should hold 2"
    )
    actor_group.actors[0].version = 3
    with actor_group.supervisor.weights.pushing("models/m3", 3):
        assert (await pool(request)).policy_version == 3
    assert (await pool(request)).policy_version == 3


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


async def test_dialogues_in_workers_end_when_somebody_died_too_often() -> None:
    """A worker waits for a dead engine's successor; when there will be none, the driver must not
    wait with it.
    """
    actor_group = ActorGroup(role="dialogue-worker")

    async def never(batch: Any) -> None:
        await asyncio.Event().wait()

    actor_group.actors[0].do_exchange = never  # type: ignore[method-assign]
    play = GuardedWorkers(actor_group.actors, actor_group.supervisor)
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


async def test_a_limit_of_the_work_itself_is_no_failure() -> None:
    actor_group = ActorGroup(role="dialogue-worker")
    with pytest.raises(TimeoutError):
        async with actor_group.supervisor.failure.ends():
            await asyncio.wait_for(asyncio.Event().wait(), 0.001)
    async with actor_group.supervisor.failure.ends():
        await asyncio.sleep(0)
    assert actor_group.supervisor.failure.error is None
    assert not actor_group.supervisor.failure._limits


def test_an_engine_that_dies_in_a_push_gets_the_weights_afterwards() -> None:
    actor_group = ActorGroup(count=2)
    actor_group.actors[1].dies_in = "load_weights"
    pusher = WeightPusher(actor_group.actors, actor_group.supervisor)
    pushed = asyncio.run(pusher("models/m1", 1))
    assert (pushed.version, pushed.num_engines) == (1, 2)
    assert [actor.version for actor in actor_group.actors] == [1, 1]
    assert actor_group.supervisor.weights.current == ("models/m1", 1)
    assert actor_group.counters.resent == {"push": 1}


async def test_an_engine_replaced_while_the_others_still_load_is_pushed_into_again() -> None:
    actor_group = ActorGroup(count=2)
    slow = actor_group.actors[1]
    slow.hold = asyncio.Event()
    pusher = WeightPusher(actor_group.actors, actor_group.supervisor)
    pushing = asyncio.create_task(pusher("models/m1", 1))
    await asyncio.sleep(0.01)
    assert actor_group.actors[0].version == 1
    actor_group.actors[0].alive = False
    await actor_group.supervisor.replace("questioner", 0, GONE)
    assert actor_group.actors[0].version == 0  # m_1 is not current before all have it
    assert slow.hold is not None
    slow.hold.set()
    await pushing
    assert [actor.version for actor in actor_group.actors] == [1, 1]


async def test_a_push_that_fails_leaves_the_current_weights() -> None:
    actor_group = ActorGroup()

    async def refuse(model_dir: str, version: int) -> None:
        raise EngineError("these weights are bad")

    actor_group.actors[0].do_load_weights = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(EngineError, match="these weights are bad"):
        await WeightPusher(actor_group.actors, actor_group.supervisor)("models/m1", 1)
    assert actor_group.supervisor.weights.current == ("base", 0)
    assert actor_group.supervisor.weights.versions == {0}
    assert actor_group.hired == []


def trainer(actor_group: ActorGroup, monkeypatch: pytest.MonkeyPatch) -> TrainerGroup:
    monkeypatch.setattr(pool_module, "ray", SimpleNamespace(put=lambda value: value))
    return TrainerGroup(
        actor_group.actors,
        base_model_dir=Path("base"),
        run_dir=Path("run"),
        continue_training=False,
        progress=PlainProgress(),
        supervisor=actor_group.supervisor,
    )


def test_when_one_rank_dies_all_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    actor_group = ActorGroup(role="trainer", count=2, together=True)
    first, second = actor_group.actors
    second.dies_in = "train"

    async def fails_before_ray_knows(*arguments: Any) -> None:
        second.alive = False
        raise RayTaskError("train", "", RuntimeError("connection closed by peer"))

    first.do_train = fails_before_ray_knows
    asyncio.run(trainer(actor_group, monkeypatch)([], 1))
    assert [actor.name for actor in actor_group.actors] == ["trainer-0'", "trainer-1'"]
    assert actor_group.dismissed == ["trainer-0", "trainer-1"]
    assert all(actor.methods.count("train") == 1 for actor in actor_group.actors)
    assert actor_group.actors[1].calls[-1] == (
        "train",
        [],
        "base",
        "run/models/m1",
        1,
        "run/t0/training",
    )
    assert actor_group.counters.restarts == {"trainer": 1}
    assert actor_group.said[0].startswith("trainer died: ")


@pytest.mark.parametrize(
    "error", [DivergenceError("the loss is nan"), RayTaskError("train", "", RuntimeError("bug"))]
)
def test_what_is_no_death_is_raised_as_it_is(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor_group = ActorGroup(role="trainer", count=2, together=True)

    async def fail(*arguments: Any) -> None:
        raise error

    for actor in actor_group.actors:
        actor.do_train = fail
    with pytest.raises(type(error)):
        asyncio.run(trainer(actor_group, monkeypatch)([], 1))
    assert (actor_group.hired, actor_group.said) == ([], [])
