"""Scorers, the trainer and pushes when an actor dies, with fakes in the place of Ray's actors."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from stargate.actors.rpc import clients as pool_module
from stargate.actors.rpc.clients import TrainerGroup, WeightPusher
from stargate.actors.rpc.scorers import ScorerPool
from stargate.errors import DivergenceError, EngineError
from stargate.monitoring.progress import PlainProgress
from stargate.types import (
    ScoreRequest,
    ScoreResult,
)
from tests.fakes.actor_slots import GONE, ActorGroup


def score_request(key: str) -> ScoreRequest:
    return ScoreRequest(key, (1, 2), ((3,),))


def test_a_dead_scorers_work_goes_to_the_others() -> None:
    actor_group = ActorGroup(role="scorer", count=2)
    first, second = actor_group.actors
    first.dies_in = "score"
    pool = ScorerPool(actor_group.actors, actor_group.supervisor)

    async def run() -> list[ScoreResult]:
        results = await pool([score_request("a"), score_request("b")])
        while not actor_group.counters.restarts:
            await asyncio.sleep(0)
        return results

    assert [result.key for result in asyncio.run(run())] == ["a", "b"]
    assert second.methods == ["score"]
    assert actor_group.counters.resent == {"scorer": 2}


def test_a_lone_scorer_is_waited_for() -> None:
    actor_group = ActorGroup(role="scorer")
    actor_group.actors[0].dies_in = "score"
    pool = ScorerPool(actor_group.actors, actor_group.supervisor)

    async def run() -> list[list[ScoreResult]]:
        return await asyncio.gather(*(pool([score_request(key)]) for key in "abc"))

    got = asyncio.run(run())
    assert [[result.key for result in results] for results in got] == [["a"], ["b"], ["c"]]
    assert len(actor_group.hired) == 1
    assert actor_group.hired[0].methods.count("score") == 3


def test_what_ends_every_scorer_is_given_up() -> None:
    actor_group = ActorGroup(
        role="scorer", max_restarts=99, prepare=lambda actor: setattr(actor, "dies_in", "score")
    )
    actor_group.actors[0].dies_in = "score"
    pool = ScorerPool(actor_group.actors, actor_group.supervisor)
    with pytest.raises(EngineError, match="a and 0 more: 4 scorers died over them"):
        asyncio.run(pool([score_request("a")]))


def test_an_engine_that_dies_in_a_push_gets_the_weights_afterwards() -> None:
    actor_group = ActorGroup(count=2)
    actor_group.actors[1].dies_in = "load_weights"
    pusher = WeightPusher(actor_group.actors, actor_group.supervisor)
    pushed = asyncio.run(pusher("models/m1", 1))
    assert (pushed.version, pushed.num_engines) == (1, 2)
    assert [actor.version for actor in actor_group.actors] == [1, 1]
    assert actor_group.supervisor.weights.current == ("models/m1", 1)
    assert actor_group.counters.resent == {"push": 1}


def test_an_engine_replaced_while_the_others_still_load_is_pushed_into_again() -> None:
    actor_group = ActorGroup(count=2)
    slow = actor_group.actors[1]
    slow.hold = asyncio.Event()
    pusher = WeightPusher(actor_group.actors, actor_group.supervisor)

    async def run() -> None:
        pushing = asyncio.create_task(pusher("models/m1", 1))
        await asyncio.sleep(0.01)
        assert actor_group.actors[0].version == 1
        actor_group.actors[0].alive = False
        await actor_group.supervisor.replace("questioner", 0, GONE)
        assert actor_group.actors[0].version == 0  # m_1 is not current before all have it
        assert slow.hold is not None
        slow.hold.set()
        await pushing

    asyncio.run(run())
    assert [actor.version for actor in actor_group.actors] == [1, 1]


def test_a_push_that_fails_leaves_the_current_weights() -> None:
    actor_group = ActorGroup()

    async def run() -> None:
        async def refuse(model_dir: str, version: int) -> None:
            raise EngineError("these weights are bad")

        actor_group.actors[0].do_load_weights = refuse  # type: ignore[method-assign,assignment]
        with pytest.raises(EngineError, match="these weights are bad"):
            await WeightPusher(actor_group.actors, actor_group.supervisor)("models/m1", 1)

    asyncio.run(run())
    assert actor_group.supervisor.weights.current == ("base", 0)
    assert actor_group.supervisor.weights.versions == {0}
    assert actor_group.hired == []


def trainer(actor_group: ActorGroup, monkeypatch: pytest.MonkeyPatch) -> TrainerGroup:
    monkeypatch.setattr(pool_module, "ray", SimpleNamespace(put=lambda value: value))
    return TrainerGroup(
        actor_group.actors,
        base_model_dir=Path("base"),
        models_dir=Path("models"),
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
    assert actor_group.actors[1].calls[-1] == ("train", [], "base", "models/m1", 1)
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
