"""Dead actors and who takes their place, with fakes in the place of Ray's actors."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.runtime import supervisor as supervisor_module
from stargate.actors.runtime.clients import GuardedPool
from stargate.actors.runtime.dialogue_worker import _Staff
from stargate.errors import EngineError
from stargate.launch.summary import summary_lines
from stargate.monitoring.summary import summarise_run
from stargate.records.counters import Counters
from stargate.records.history import SITTINGS_FILE, RunTotals, read_totals
from stargate.records.store import RunStore
from stargate.types import (
    GenerateRequest,
    MemoryPeak,
    Sampling,
)
from tests.fakes.actor_slots import GONE, ActorGroup, FakeActor, settle


def test_a_dead_engine_is_replaced_once_and_holds_the_current_weights() -> None:
    group = ActorGroup()
    group.supervisor.weights.current = ("models/m2", 2)
    dead = group.actors[0]
    dead.alive = False

    async def run() -> list[Any]:
        asking = [group.replace() for _ in range(3)]
        return await asyncio.gather(*asking)

    got = asyncio.run(run())
    [new] = group.hired
    assert got == [new] * 3
    assert group.actors == [new]
    assert new.methods == ["start", "load_weights"]
    assert new.calls[1] == ("load_weights", "models/m2", 2)
    assert group.dismissed == ["questioner-0"]
    assert group.counters.restarts == {"questioner": 1}
    assert group.said[0] == "questioner-0 died: gone; starting it again (restart 1 of 3)"
    assert group.said[1].startswith("questioner-0 is back after 0.")
    assert group.said[1].endswith(" s, with weights version 2")


async def test_it_appears_only_when_it_is_ready() -> None:
    hold = asyncio.Event()
    group = ActorGroup(prepare=lambda actor: setattr(actor, "hold", hold))
    dead = group.actors[0]
    dead.alive = False
    asking = asyncio.create_task(group.replace())
    await settle()
    assert group.hired[0].methods == ["start"]
    assert group.actors == [dead]
    asking.cancel()  # who asked no longer waits; the restart goes on
    await settle()
    hold.set()
    await settle()
    assert group.actors == group.hired


def test_one_that_answers_is_not_replaced() -> None:
    group = ActorGroup()
    got = asyncio.run(group.replace())
    assert got is group.actors[0]
    assert (group.hired, group.said, group.counters.restarts) == ([], [], {})


async def test_a_death_just_after_a_look_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_WATCH_SECONDS", 0.0)
    group = ActorGroup()
    first = group.actors[0]
    group.supervisor.watch()
    answered, going_on = asyncio.Event(), asyncio.Event()

    async def answer_and_die() -> None:
        answered.set()
        await going_on.wait()
        first.alive = False

    first.do_progress = answer_and_die  # type: ignore[method-assign]
    await answered.wait()
    asking = asyncio.create_task(group.replace())
    await asyncio.sleep(0)
    going_on.set()
    assert await asking is group.hired[0]
    await group.supervisor.close()


async def test_a_push_that_ends_during_a_restart_reaches_the_new_engine() -> None:
    hold = asyncio.Event()
    group = ActorGroup(prepare=lambda actor: setattr(actor, "hold", hold))
    group.supervisor.weights.current = ("models/m1", 1)
    group.actors[0].alive = False
    asking = asyncio.create_task(group.replace())
    await settle()
    hold.set()
    while "load_weights" not in group.hired[0].methods:
        await asyncio.sleep(0)
    group.supervisor.weights.current = ("models/m2", 2)
    await asking
    assert [call for call in group.hired[0].calls if call[0] == "load_weights"] == [
        ("load_weights", "models/m1", 1),
        ("load_weights", "models/m2", 2),
    ]


async def test_too_many_restarts_stop_the_run_with_one_line() -> None:
    group = ActorGroup(max_restarts=2)
    request = GenerateRequest("r", "s", (1,), Sampling(0.0, 1.0, 1, 0))
    for _ in range(2):
        group.actors[0].alive = False
        await group.replace()
    group.actors[0].alive = False
    pool = GuardedPool("questioner", group.actors, group.supervisor)
    with pytest.raises(EngineError) as caught:
        await pool(request)
    assert str(caught.value) == (
        "questioner-0 died once more than schedule.max_restarts = 2 allows: questioner-0' is gone"
    )
    with pytest.raises(EngineError, match="once more than"):
        await group.replace()
    assert group.counters.restarts == {"questioner": 2}
    assert len(group.hired) == 2


def test_one_that_does_not_start_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_RETRY_SECONDS", 0.0)
    group = ActorGroup()

    def dies_first(actor: FakeActor) -> None:
        actor.alive = bool(group.hired)

    group.prepare = dies_first
    group.actors[0].alive = False
    got = asyncio.run(group.replace())
    assert got is group.hired[1]
    assert group.dismissed == ["questioner-0", "questioner-0'", "questioner-0"]
    assert "starting it again (restart 2 of 3)" in group.said[1]
    assert group.counters.restarts == {"questioner": 1}  # one death, one that took its place


async def test_restarts_count_within_a_run() -> None:
    group = ActorGroup(max_restarts=1)
    for _ in range(3):
        group.supervisor.begin(Counters())
        group.actors[0].alive = False
        await group.replace()
    assert len(group.hired) == 3


async def test_the_watch_finds_who_died_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_WATCH_SECONDS", 0.001)
    group = ActorGroup(count=2)
    group.supervisor.watch()
    group.actors[1].alive = False
    while not group.counters.restarts:
        await asyncio.sleep(0.001)
    await group.supervisor.close()
    assert [actor.name for actor in group.actors] == ["questioner-0", "questioner-1'"]


async def test_after_the_end_nobody_is_hired() -> None:
    hold = asyncio.Event()
    group = ActorGroup(prepare=lambda actor: setattr(actor, "hold", hold))
    group.actors[0].alive = False
    asking = asyncio.create_task(group.replace())
    await settle()
    await group.supervisor.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(EngineError, match="are being ended"):
        await group.replace()
    assert group.dismissed == ["questioner-0", "questioner-0'"]  # the half-started one too


async def test_a_worker_goes_on_with_the_engine_that_it_is_told_of() -> None:
    staff = _Staff(["old"])
    waiting = asyncio.create_task(staff.successor(0, GONE))
    await asyncio.sleep(0)
    staff.meet(["old"])  # no news
    await settle()
    assert not waiting.done()
    staff.meet(["new"])
    assert await waiting == "new"
    staff.meet(["newer"])  # before its death was noticed here
    assert await staff.successor(0, GONE) == "newer"


def test_restarts_are_counted_over_all_sittings_and_shown(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    RunTotals(count=1).write(store)
    older = store.read_json(SITTINGS_FILE)
    assert older is not None
    for name in ("restarts", "longest_restart", "resent"):
        del older[name]
    store.write_json(SITTINGS_FILE, older)
    total = read_totals(store)  # of a run that an earlier version began
    for seconds in (31.0, 12.0):
        counters = total.new_counters()
        counters.restarted("questioner", seconds)
        counters.resent["questioner"] += 4
        total = total.plus(counters, 1.0, MemoryPeak(1.0, "pss", 1), {})
    total.write(store)
    summary = summarise_run(read_totals(store), {}, [], "finished", {})
    assert summary["restarts"] == {"questioner": {"count": 2, "longest_s": 31.0}}
    assert summary["resent"] == {"questioner": 8}
    lines = list(summary_lines({**summary, "repeated_steps": 7}))
    assert "optimizer steps done again: 7" in lines
    assert "died and started again: 2 questioner (at most 31 s)" in lines
    assert "requests sent again: 8 questioner" in lines
