"""Engines that join and leave while others work and weights are pushed, with fakes for actors."""

import asyncio
from typing import Any

import pytest

from stargate.actors.rpc.remote import ActorDied
from stargate.actors.runtime import supervisor as supervisor_module
from stargate.actors.runtime.clients import GuardedPool
from stargate.errors import EngineError
from stargate.launch.summary import summary_lines
from stargate.monitoring.summary import summarise_run
from stargate.records.history import SITTINGS_FILE, RunTotals, read_totals
from stargate.records.store import RunStore
from stargate.types import GenerateRequest, Generation, MemoryPeak, Sampling
from tests.fakes.actor_slots import ActorGroup, FakeActor, settle
from tests.unit.actors.runtime import test_dialogue_worker
from tests.unit.actors.runtime.test_dialogue_worker import (
    FakeEngine,
    config,
    make_workers,
    plans,
    pool_of,
)

bytes_as_tokens = test_dialogue_worker.bytes_as_tokens  # a fixture


def request(session: str) -> GenerateRequest:
    return GenerateRequest(f"{session}/q0", session, (1,), Sampling(0.0, 1.0, 1, 0))


def texts(generations: list[Generation]) -> list[tuple[str, int]]:
    return [(generation.text, generation.policy_version) for generation in generations]


# --- joining


async def test_one_that_joins_holds_the_current_weights_before_it_gets_work() -> None:
    hold = asyncio.Event()
    group = ActorGroup(prepare=lambda actor: setattr(actor, "hold", hold))
    group.supervisor.weights.current = ("models/m2", 2)
    group.actors[0].version = 2
    pool = GuardedPool("questioner", group.actors, group.supervisor)
    adding = asyncio.create_task(group.add(1))
    await settle()
    [new] = group.hired
    assert new.methods == ["start"]  # it starts, and the other one works
    assert texts([await pool(request("1")), await pool(request("2"))]) == [
        ("questioner-0", 2),
        ("questioner-0", 2),
    ]
    assert len(group.actors) == 1
    hold.set()
    await adding
    assert group.actors == [group.actors[0], new]
    assert new.calls == [("start",), ("load_weights", "models/m2", 2)]
    assert texts([await pool(request("1")), await pool(request("3"))]) == [
        ("questioner-0", 2),  # a session stays where it is
        ("questioner-0", 2),  # nobody is busy: the first one
    ]
    both = await asyncio.gather(pool(request("4")), pool(request("5")))
    assert texts(list(both)) == [("questioner-0", 2), ("questioner-1'", 2)]
    assert group.counters.joined == {"questioner": 1}
    assert group.said[0].startswith("questioner-1 has joined after 0.")
    assert group.said[0].endswith(" s, with weights version 2")
    assert group.counters.restarts == {}


async def test_one_that_joins_during_a_push_is_pushed_into_too() -> None:
    """It takes its place with the old weights, while another engine still loads the new ones."""
    group = ActorGroup()
    slow = group.actors[0]
    slow.hold = asyncio.Event()
    pushing = asyncio.create_task(group.push("models/m1", 1))
    await settle()
    await group.add(1)
    assert group.hired[0].methods == ["start"]  # m_1 is not current before all have it
    slow.hold.set()
    pushed = await pushing
    assert (pushed.version, pushed.num_engines) == (1, 2)
    assert [actor.version for actor in group.actors] == [1, 1]
    assert group.hired[0].calls[1] == ("load_weights", "models/m1", 1)


async def test_one_that_starts_while_a_push_ends_loads_what_was_pushed() -> None:
    hold = asyncio.Event()
    group = ActorGroup(prepare=lambda actor: setattr(actor, "hold", hold))
    adding = asyncio.create_task(group.add(1))
    await settle()
    pushed = await group.push("models/m1", 1)
    assert pushed.num_engines == 1
    hold.set()
    await adding
    assert [actor.version for actor in group.actors] == [1, 1]
    assert group.hired[0].calls == [("start",), ("load_weights", "models/m1", 1)]


async def test_several_start_side_by_side_and_take_their_places_in_order() -> None:
    holds = [asyncio.Event(), asyncio.Event()]
    group = ActorGroup()
    group.prepare = lambda actor: setattr(actor, "hold", holds[len(group.hired)])
    adding = asyncio.create_task(group.add(1, 2))
    await settle()
    assert [actor.methods for actor in group.hired] == [["start"], ["start"]]
    holds[1].set()
    await settle()
    assert len(group.actors) == 1
    holds[0].set()
    await adding
    names = [actor.name for actor in group.actors]
    assert names == ["questioner-0", "questioner-1'", "questioner-2'"]


async def test_one_that_can_not_start_is_ended_and_the_run_goes_on() -> None:
    group = ActorGroup()

    def prepare(actor: FakeActor) -> None:
        actor.dies_in = "start" if actor.name == "questioner-2'" else None

    group.prepare = prepare
    with pytest.raises(EngineError, match="questioner-2' is gone"):
        await group.add(1, 2, 3)
    group.supervisor.failure.check()  # no failure of the run
    assert [actor.name for actor in group.actors] == ["questioner-0", "questioner-1'"]
    assert set(group.dismissed) == {"questioner-2'", "questioner-3'"}
    assert group.counters.joined == {"questioner": 1}


async def test_when_the_run_ends_one_that_starts_is_ended() -> None:
    group = ActorGroup(prepare=lambda actor: setattr(actor, "hold", asyncio.Event()))
    adding = asyncio.create_task(group.add(1))
    await settle()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert set(group.dismissed) == {"questioner-1'"}
    assert len(group.actors) == 1


async def test_one_that_has_joined_is_replaced_when_it_dies() -> None:
    group = ActorGroup()
    await group.add(1)
    group.actors[1].alive = False
    await group.replace(1)
    assert group.actors[1] is group.hired[1]
    assert group.counters.restarts == {"questioner": 1}


# --- leaving


async def test_the_last_one_leaves_and_requests_go_on() -> None:
    group = ActorGroup(role="roleplayer", count=3)
    leaving: list[Any] = []
    pool = GuardedPool("roleplayer", group.actors, group.supervisor)
    sessions = [str(n) for n in range(6)]
    before = texts(list(await asyncio.gather(*(pool(request(s)) for s in sessions))))
    assert {name for name, _ in before} == {"roleplayer-0", "roleplayer-1", "roleplayer-2"}
    last = group.actors[2]
    assert await group.supervisor.retire("roleplayer", leaving) == "roleplayer-2"
    assert leaving == [last]
    after = texts(list(await asyncio.gather(*(pool(request(s)) for s in sessions))))
    assert {name for name, _ in after} == {"roleplayer-0", "roleplayer-1"}
    # It is nobody's any more: its death is not noticed, nor is it asked whether it lives.
    last.alive = False
    with pytest.raises(EngineError, match="roleplayer-2 has left: gone"):
        await group.replace(2)
    assert [actor.name for actor in group.actors] == ["roleplayer-0", "roleplayer-1"]
    assert group.counters.left == {"roleplayer": 1}
    assert (group.hired, group.dismissed) == ([], [])
    assert group.said == ["roleplayer-2 gets no new requests and ends those that it has"]


def test_one_of_each_role_stays() -> None:
    group = ActorGroup()
    with pytest.raises(EngineError, match="the last questioner can't leave"):
        asyncio.run(group.supervisor.retire("questioner", []))
    assert len(group.actors) == 1


async def test_nobody_leaves_in_the_middle_of_a_push() -> None:
    group = ActorGroup(count=2)
    slow = group.actors[1]
    slow.hold = asyncio.Event()
    leaving: list[Any] = []
    pushing = asyncio.create_task(group.push("models/m1", 1))
    await settle()
    retiring = asyncio.create_task(group.supervisor.retire("questioner", leaving))
    await settle()
    assert len(group.actors) == 2
    slow.hold.set()
    assert (await pushing).num_engines == 2
    await retiring
    assert leaving == [slow]
    assert len(group.actors) == 1


async def test_one_that_is_being_started_again_leaves_when_it_is_back() -> None:
    hold = asyncio.Event()
    group = ActorGroup(count=2, prepare=lambda actor: setattr(actor, "hold", hold))
    group.actors[1].alive = False
    leaving: list[Any] = []
    asking = asyncio.create_task(group.replace(1))
    await settle()
    retiring = asyncio.create_task(group.supervisor.retire("questioner", leaving))
    await settle()
    assert len(group.actors) == 2
    hold.set()
    await retiring
    assert [await asking] == leaving  # it was there for a moment
    assert leaving == group.hired
    assert [actor.name for actor in group.actors] == ["questioner-0"]


async def test_the_watch_asks_only_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_WATCH_SECONDS", 0.001)
    group = ActorGroup(count=2)
    group.supervisor.watch()
    await group.add(2)
    leaving: list[Any] = []
    await group.supervisor.retire("questioner", leaving)
    await group.supervisor.retire("questioner", leaving)
    asked = [actor.methods.count("progress") for actor in leaving]
    at_least = group.actors[0].methods.count("progress") + 3
    while group.actors[0].methods.count("progress") < at_least:
        await asyncio.sleep(0.001)
    assert [actor.methods.count("progress") for actor in leaving] == asked
    await group.supervisor.close()


# --- dialogue workers


async def test_dialogue_workers_use_who_joins_and_let_go_who_leaves() -> None:
    settings = config(2)
    asking = [FakeEngine(name) for name in "xyz"]
    answering = [FakeEngine("a")]
    workers = await make_workers(settings, asking[:1], answering)
    pool, _ = pool_of(workers)
    made = plans(settings, num_pairs=8)

    async def meet(engines: list[FakeEngine]) -> None:
        handles = [engine.handle for engine in engines]
        await asyncio.gather(*(w.meet("questioner", handles) for w in workers))

    async def used() -> list[bool]:
        before = [len(engine.requests) for engine in asking]
        await asyncio.gather(*(pool(plan) for plan in made))
        after = [len(engine.requests) for engine in asking]
        return [new > old for old, new in zip(before, after, strict=True)]

    assert await used() == [True, False, False]
    # Both workers used the first one; now each has a home of its own for new dialogues.
    made = [p for p in plans(settings, num_pairs=16) if p not in made]
    await meet(asking[:2])
    assert await used() == [True, True, False]
    await meet(asking)
    made = [p for p in plans(settings, num_pairs=32) if p.pair.persona.id >= "p2"]
    assert await used() == [True, True, True]
    await meet(asking[:1])
    assert await used() == [True, False, False]
    await meet(asking[:1])  # no news
    pools = workers[0]._pools["questioner"], workers[1]._pools["roleplayer"]
    assert [pool.num_replicas for pool in pools] == [1, 1]


async def test_a_worker_says_that_an_engine_may_go_when_it_owes_it_nothing() -> None:
    settings = config(1)
    released = asyncio.Event()
    asking = [FakeEngine("x"), FakeEngine("y")]
    generate = asking[1]._generate

    async def slowly(request: GenerateRequest) -> Generation:
        await released.wait()
        return await generate(request)

    asking[1].handle = test_dialogue_worker.Handle(
        test_dialogue_worker.BatchedServer(slowly).exchange
    )
    [worker] = await make_workers(settings, asking, [FakeEngine("a")])
    pool, _ = pool_of([worker])
    playing = asyncio.gather(*(pool(plan) for plan in plans(settings)))
    await settle()
    parting = asyncio.create_task(worker.meet("questioner", [asking[0].handle]))
    await settle()
    assert not parting.done()
    released.set()
    await parting
    at_parting = len(asking[1].requests)
    assert at_parting > 0
    dialogues = await playing
    assert len(asking[1].requests) == at_parting
    assert {len(dialogue.turns) for dialogue in dialogues} == {2}  # none was lost or cut


async def test_a_worker_does_not_wait_for_a_dead_engine_that_leaves() -> None:
    settings = config(1)
    asking = [FakeEngine("x"), FakeEngine("y")]
    [worker] = await make_workers(settings, asking, [FakeEngine("a")])
    asking[1].handle.dead = True
    pool, _ = pool_of([worker])
    dialogues = await asyncio.gather(*(pool(plan) for plan in plans(settings)))
    assert len(dialogues) == 12  # the other one did it; the dead one's successor is awaited
    await worker.meet("questioner", [asking[0].handle])
    new = FakeEngine("z")
    await worker.meet("questioner", [asking[0].handle, new.handle])
    await asyncio.gather(*(pool(plan) for plan in plans(settings, num_pairs=9)[12:]))
    assert new.requests


async def test_a_place_that_is_given_up_has_no_successor() -> None:
    staff = test_dialogue_worker.dialogue_worker._Staff(["a", "b"])
    waiting = asyncio.create_task(staff.successor(1, ActorDied("b is gone")))
    await asyncio.sleep(0)
    staff.meet(["a"])
    with pytest.raises(EngineError, match="engine 1 has left: b is gone"):
        await waiting
    staff.meet(["a", "c"])
    waiting = asyncio.create_task(staff.successor(1, ActorDied("c is gone")))
    await settle()
    assert not waiting.done()  # c is the one in use
    staff.meet(["a", "d"])
    assert await waiting == "d"


# --- counting


def test_who_joined_and_left_is_counted_over_all_sittings(tmp_path: Any) -> None:
    store = RunStore(tmp_path)
    RunTotals(count=1).write(store)
    older = store.read_json(SITTINGS_FILE)
    assert older is not None
    for name in ("joined", "left"):
        del older[name]
    store.write_json(SITTINGS_FILE, older)
    total = read_totals(store)  # of a run that an earlier version began
    for joined in (2, 1):
        counters = total.new_counters()
        counters.joined["questioner"] += joined
        counters.left["roleplayer"] += 1
        total = total.plus(counters, 1.0, MemoryPeak(1.0, "pss", 1), {})
    total.write(store)
    summary = summarise_run(read_totals(store), {}, [], "finished", {})
    assert (summary["joined"], summary["left"]) == ({"questioner": 3}, {"roleplayer": 2})
    lines = list(summary_lines(summary))
    assert "engines that joined meanwhile: 3 questioner" in lines
    assert "engines that left meanwhile: 2 roleplayer" in lines
    quiet = summarise_run(RunTotals(), {}, [], "finished", {})
    assert not any("meanwhile" in line for line in summary_lines(quiet))
