"""Actors that are alive and silent: ended and replaced as if they had died. Fakes really hang."""

import asyncio

import pytest

from stargate.actors.runtime import supervisor as supervisor_module
from stargate.actors.runtime.scorer_clients import ScoreDeadline, ScorerPool
from stargate.types import ScoreRequest
from tests.fakes.actor_slots import GONE, ActorGroup, FakeActor, settle

PING = 5.0
PINGS = 6


async def pings_go_unanswered(group: ActorGroup, count: int = PINGS) -> None:
    for _ in range(count):
        await group.clock.move(PING)


async def test_the_watch_ends_one_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_WATCH_SECONDS", 0.0)
    group = ActorGroup(count=2)
    frozen = group.actors[1]
    frozen.awake.clear()
    group.supervisor.watch()
    await pings_go_unanswered(group, PINGS - 1)
    assert group.dismissed == []
    await pings_go_unanswered(group, 1)
    await group.supervisor.close()
    assert group.dismissed == ["questioner-1"]
    assert [actor.name for actor in group.actors] == ["questioner-0", "questioner-1'"]
    assert group.counters.restarts == {"questioner": 1}
    assert group.said[0] == (
        "questioner-1 died: questioner-1 hangs: it is there, but answers none of 6 pings within "
        "5 s each; starting it again (restart 1 of 3)"
    )


async def test_the_others_are_looked_after_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_WATCH_SECONDS", 0.0)
    group = ActorGroup(count=2)
    group.actors[0].awake.clear()
    group.supervisor.watch()
    await settle()
    group.actors[1].alive = False
    await settle()
    await group.supervisor.close()
    assert group.dismissed == ["questioner-1"]


async def test_one_late_answer_is_no_death() -> None:
    """While the driver stood still, time ran out for an answer that was there."""
    group = ActorGroup()
    late = group.actors[0]
    late.awake.clear()
    asking = asyncio.create_task(group.replace())
    await pings_go_unanswered(group, PINGS - 1)
    late.awake.set()
    assert await asking is late
    assert (group.dismissed, group.counters.restarts) == ([], {})


async def test_a_frozen_scorer_is_replaced_while_a_look_waits_for_its_ping() -> None:
    group = ActorGroup(role="scorer")
    frozen = group.actors[0]
    pool = ScorerPool(group.actors, group.supervisor, ScoreDeadline(1.0, 1.0, group.clock.sleep))
    frozen.awake.clear()
    looking = asyncio.create_task(group.replace())
    await settle()
    scoring = asyncio.create_task(pool([ScoreRequest("a", (1,), ((2,),))]))
    await pings_go_unanswered(group)
    assert [result.key for result in await scoring] == ["a"]
    assert (await looking).name == "scorer-0'"
    assert group.dismissed == ["scorer-0"]


async def test_a_push_into_a_frozen_engine_goes_on_with_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "_WATCH_SECONDS", 0.0)
    group = ActorGroup()
    frozen = group.actors[0]
    pushing = asyncio.create_task(group.push("models/m1", 1))
    frozen.awake.clear()
    await settle()
    assert frozen.methods == ["load_weights"]
    group.supervisor.watch()
    await pings_go_unanswered(group)
    assert (await pushing).version == 1
    await group.supervisor.close()
    assert group.actors[0].name == "questioner-0'"
    assert ("load_weights", "models/m1", 1) in group.actors[0].calls
    assert group.counters.resent == {"push": 1}


async def test_one_that_does_not_start_is_ended_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "START_SECONDS", 0.0)
    monkeypatch.setattr(supervisor_module, "_RETRY_SECONDS", 0.0)

    def freezes_first(actor: FakeActor) -> None:
        if not group.hired:
            actor.awake.clear()
        else:
            monkeypatch.setattr(supervisor_module, "START_SECONDS", 3600.0)

    group = ActorGroup(prepare=freezes_first)
    group.actors[0].alive = False
    assert await group.supervisor.replace("questioner", 0, GONE) is group.hired[1]
    assert "not started after 0 s; starting it again (restart 2 of 3)" in group.said[1]
