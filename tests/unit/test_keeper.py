"""Dead actors and who takes their place, with fakes in the place of Ray's actors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from stargate.actors import keeper as keeper_module
from stargate.actors import pool as pool_module
from stargate.actors.dialogue_worker import _Staff
from stargate.actors.keeper import GuardedPool, GuardedWorkers, Keeper
from stargate.actors.mailbox import Delivery, Parcel
from stargate.actors.pool import ScorerPool, TrainerGroup, WeightPusher
from stargate.actors.posts import HeldWeights, Post
from stargate.actors.remote import ActorDied
from stargate.errors import DivergenceError, EngineError
from stargate.memory import MemoryPeak
from stargate.past import SITTINGS_FILE, Sittings, read_sittings
from stargate.progress import PlainProgress
from stargate.store import RunStore
from stargate.summary import summarise_run, summary_lines
from stargate.tally import Tally
from stargate.types import (
    DialoguePlan,
    GenerateRequest,
    Generation,
    Sampling,
    ScoreRequest,
    ScoreResult,
    StopReason,
)
from tests.unit.fakes import make_pair


class FakeActor:
    """Any of our actors. `dies_in` names the method whose next call is its end."""

    def __init__(self, name: str, dies_in: str | None = None) -> None:
        self.name = name
        self.calls: list[tuple[Any, ...]] = []
        self.alive = True
        self.dies_in = dies_in
        self.version = 0
        self.hold: asyncio.Event | None = None  # what `start` and `load_weights` wait for

    def __getattr__(self, method: str) -> Any:
        if method.startswith(("do_", "__")):
            raise AttributeError(method)
        return SimpleNamespace(remote=partial(self._call, method))

    async def _call(self, method: str, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        if method == self.dies_in:
            self.alive = False
        self.calls.append((method, *arguments))
        if self.hold is not None and method in ("start", "load_weights"):
            await self.hold.wait()
        if not self.alive:
            raise ActorDied(f"{self.name} is gone")
        return await getattr(self, f"do_{method}", self.do_nothing)(*arguments)

    async def do_nothing(self, *arguments: Any) -> None:
        pass

    async def do_load_weights(self, model_dir: str, version: int) -> dict[str, float]:
        self.version = version
        return {"update": 1.0}

    async def do_reported_version(self) -> int:
        return self.version

    async def do_score(self, requests: list[ScoreRequest]) -> list[ScoreResult]:
        return [ScoreResult(request.key, ((-1.0,),)) for request in requests]

    async def do_exchange(self, parcel: Parcel[GenerateRequest]) -> Delivery[Generation]:
        text = Generation(self.name, (1,), StopReason.STOP, self.version, 1)
        return Delivery([(key, text) for key, _ in parcel.requests])

    async def do_progress(self) -> Any:
        return SimpleNamespace(number=0, total_steps=0, notes=())

    @property
    def methods(self) -> list[str]:
        return [call[0] for call in self.calls]


def ping(actor: Any) -> Awaitable[object]:
    call: Awaitable[object] = actor.progress.remote()
    return call


@dataclass
class Crew:
    """A keeper of one role with fakes. `prepare` is told each new actor before it starts."""

    role: str = "questioner"
    count: int = 1
    together: bool = False
    max_restarts: int = 3
    prepare: Callable[[FakeActor], None] = lambda actor: None
    said: list[str] = field(default_factory=list)
    dismissed: list[str] = field(default_factory=list)
    hired: list[FakeActor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.actors = [FakeActor(f"{self.role}-{n}") for n in range(self.count)]
        posts = [range(self.count)] if self.together else [(n,) for n in range(self.count)]
        self.keeper = Keeper(
            [
                Post(self.role, self.actors, p, partial(self.hire, p), ping, self.takes_weights)
                for p in posts
            ],
            HeldWeights("base"),
            self.max_restarts,
            lambda actor: self.dismissed.append(actor.name),
            self.said.append,
        )
        self.tally = Tally()
        self.keeper.begin(self.tally)

    @property
    def takes_weights(self) -> bool:
        return self.role == "questioner"

    def hire(self, numbers: Any) -> list[FakeActor]:
        new = [FakeActor(f"{self.role}-{n}'") for n in numbers]
        for actor in new:
            self.prepare(actor)
        self.hired += new
        return new


GONE = ActorDied("gone")


def test_a_dead_engine_is_replaced_once_and_holds_the_current_weights() -> None:
    crew = Crew()
    crew.keeper.weights.current = ("models/m2", 2)
    dead = crew.actors[0]
    dead.alive = False

    async def run() -> list[Any]:
        asking = [crew.keeper.replace("questioner", 0, GONE) for _ in range(3)]
        return await asyncio.gather(*asking)

    got = asyncio.run(run())
    [new] = crew.hired
    assert got == [new] * 3
    assert crew.actors == [new]
    assert new.methods == ["start", "load_weights"]
    assert new.calls[1] == ("load_weights", "models/m2", 2)
    assert crew.dismissed == ["questioner-0"]
    assert crew.tally.restarts == {"questioner": 1}
    assert crew.said[0] == "questioner-0 died: gone; starting it again (restart 1 of 3)"
    assert crew.said[1].startswith("questioner-0 is back after 0.")
    assert crew.said[1].endswith(" s, with weights version 2")


def test_it_appears_only_when_it_is_ready() -> None:
    hold = asyncio.Event()
    crew = Crew(prepare=lambda actor: setattr(actor, "hold", hold))
    dead = crew.actors[0]
    dead.alive = False

    async def run() -> None:
        asking = asyncio.create_task(crew.keeper.replace("questioner", 0, GONE))
        await asyncio.sleep(0.01)
        assert crew.hired[0].methods == ["start"]
        assert crew.actors == [dead]
        asking.cancel()  # who asked no longer waits; the restart goes on
        await asyncio.sleep(0.01)
        hold.set()
        await asyncio.sleep(0.01)
        assert crew.actors == crew.hired

    asyncio.run(run())


def test_one_that_answers_is_not_replaced() -> None:
    crew = Crew()
    got = asyncio.run(crew.keeper.replace("questioner", 0, GONE))
    assert got is crew.actors[0]
    assert (crew.hired, crew.said, crew.tally.restarts) == ([], [], {})


def test_a_death_just_after_a_look_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_WATCH_SECONDS", 0.0)
    crew = Crew()
    first = crew.actors[0]

    async def run() -> None:
        crew.keeper.watch()
        answered, going_on = asyncio.Event(), asyncio.Event()

        async def answer_and_die() -> None:
            answered.set()
            await going_on.wait()
            first.alive = False

        first.do_progress = answer_and_die  # type: ignore[method-assign]
        await answered.wait()
        asking = asyncio.create_task(crew.keeper.replace("questioner", 0, GONE))
        await asyncio.sleep(0)
        going_on.set()
        assert await asking is crew.hired[0]
        await crew.keeper.close()

    asyncio.run(run())


def test_a_push_that_ends_during_a_restart_reaches_the_new_engine() -> None:
    hold = asyncio.Event()
    crew = Crew(prepare=lambda actor: setattr(actor, "hold", hold))
    crew.keeper.weights.current = ("models/m1", 1)
    crew.actors[0].alive = False

    async def run() -> None:
        asking = asyncio.create_task(crew.keeper.replace("questioner", 0, GONE))
        await asyncio.sleep(0.01)
        hold.set()
        while "load_weights" not in crew.hired[0].methods:
            await asyncio.sleep(0)
        crew.keeper.weights.current = ("models/m2", 2)
        await asking

    asyncio.run(run())
    assert [call for call in crew.hired[0].calls if call[0] == "load_weights"] == [
        ("load_weights", "models/m1", 1),
        ("load_weights", "models/m2", 2),
    ]


def test_too_many_restarts_stop_the_run_with_one_line() -> None:
    crew = Crew(max_restarts=2)
    request = GenerateRequest("r", "s", (1,), Sampling(0.0, 1.0, 1, 0))

    async def run() -> None:
        for _ in range(2):
            crew.actors[0].alive = False
            await crew.keeper.replace("questioner", 0, GONE)
        crew.actors[0].alive = False
        pool = GuardedPool("questioner", crew.actors, crew.keeper)
        with pytest.raises(EngineError) as caught:
            await pool(request)
        assert str(caught.value) == (
            "questioner-0 died once more than schedule.max_restarts = 2 allows: "
            "questioner-0' is gone"
        )
        with pytest.raises(EngineError, match="once more than"):
            await crew.keeper.replace("questioner", 0, GONE)

    asyncio.run(run())
    assert crew.tally.restarts == {"questioner": 2}
    assert len(crew.hired) == 2


def test_one_that_does_not_start_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_RETRY_SECONDS", 0.0)
    crew = Crew()

    def dies_first(actor: FakeActor) -> None:
        actor.alive = bool(crew.hired)

    crew.prepare = dies_first
    crew.actors[0].alive = False
    got = asyncio.run(crew.keeper.replace("questioner", 0, GONE))
    assert got is crew.hired[1]
    assert crew.dismissed == ["questioner-0", "questioner-0'", "questioner-0"]
    assert "starting it again (restart 2 of 3)" in crew.said[1]
    assert crew.tally.restarts == {"questioner": 1}  # one death, one that took its place


def test_restarts_count_within_a_run() -> None:
    crew = Crew(max_restarts=1)

    async def run() -> None:
        for _ in range(3):
            crew.keeper.begin(Tally())
            crew.actors[0].alive = False
            await crew.keeper.replace("questioner", 0, GONE)

    asyncio.run(run())
    assert len(crew.hired) == 3


def test_the_watch_finds_who_died_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_WATCH_SECONDS", 0.001)
    crew = Crew(count=2)

    async def run() -> None:
        crew.keeper.watch()
        crew.actors[1].alive = False
        while not crew.tally.restarts:
            await asyncio.sleep(0.001)
        await crew.keeper.close()

    asyncio.run(run())
    assert [actor.name for actor in crew.actors] == ["questioner-0", "questioner-1'"]


def test_after_the_end_nobody_is_hired() -> None:
    hold = asyncio.Event()
    crew = Crew(prepare=lambda actor: setattr(actor, "hold", hold))
    crew.actors[0].alive = False

    async def run() -> None:
        asking = asyncio.create_task(crew.keeper.replace("questioner", 0, GONE))
        await asyncio.sleep(0.01)
        await crew.keeper.close()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(EngineError, match="is being ended"):
            await crew.keeper.replace("questioner", 0, GONE)

    asyncio.run(run())
    assert crew.dismissed == ["questioner-0", "questioner-0'"]  # the half-started one too


def test_a_text_by_other_weights_than_believed_is_refused() -> None:
    crew = Crew()
    crew.keeper.weights.current = ("models/m2", 2)
    pool = GuardedPool("questioner", crew.actors, crew.keeper)
    request = GenerateRequest("t2/a:b/0/q0", "s", (1,), Sampling(0.0, 1.0, 1, 0))

    async def run() -> None:
        with pytest.raises(EngineError) as caught:
            await pool(request)
        assert str(caught.value) == (
            "t2/a:b/0/q0: written by weights version 0, but the questioner's engines should hold 2"
        )
        crew.actors[0].version = 3
        with crew.keeper.weights.pushing("models/m3", 3):
            assert (await pool(request)).policy_version == 3
        assert (await pool(request)).policy_version == 3

    asyncio.run(run())


def test_requests_to_a_dead_engine_are_sent_again_and_counted() -> None:
    crew = Crew(role="roleplayer")
    crew.actors[0].dies_in = "exchange"
    pool = GuardedPool("roleplayer", crew.actors, crew.keeper)
    requests = [GenerateRequest(f"r{n}", f"s{n}", (1,), Sampling(0.0, 1.0, 1, 0)) for n in range(3)]

    async def run() -> list[Generation]:
        return await asyncio.gather(*map(pool, requests))

    assert [g.text for g in asyncio.run(run())] == ["roleplayer-0'"] * 3
    assert crew.tally.resent == {"roleplayer": 3}
    assert "load_weights" not in crew.hired[0].methods


def test_dialogues_in_workers_end_when_somebody_died_too_often() -> None:
    """A worker waits for a dead engine's successor; when there will be none, the driver must not
    wait with it.
    """
    crew = Crew(role="dialogue-worker")

    async def never(parcel: Any) -> None:
        await asyncio.Event().wait()

    crew.actors[0].do_exchange = never  # type: ignore[method-assign]
    play = GuardedWorkers(crew.actors, crew.keeper)

    async def run() -> None:
        playing = asyncio.create_task(play(DialoguePlan("t0/a:b/0", make_pair(), 0, 1, 0)))
        await asyncio.sleep(0.01)
        await crew.keeper.close()  # sets a failure, as too many deaths do
        with pytest.raises(EngineError, match="the crew is being ended"):
            await playing

    asyncio.run(run())


def test_a_worker_goes_on_with_the_engine_that_it_is_told_of() -> None:
    async def run() -> None:
        staff = _Staff(["old"])
        waiting = asyncio.create_task(staff.successor(0, GONE))
        await asyncio.sleep(0)
        staff.meet(["old"])  # no news
        await asyncio.sleep(0.01)
        assert not waiting.done()
        staff.meet(["new"])
        assert await waiting == "new"
        staff.meet(["newer"])  # before its death was noticed here
        assert await staff.successor(0, GONE) == "newer"

    asyncio.run(run())


def score_request(key: str) -> ScoreRequest:
    return ScoreRequest(key, (1, 2), ((3,),))


def test_a_dead_scorers_work_goes_to_the_others() -> None:
    crew = Crew(role="scorer", count=2)
    first, second = crew.actors
    first.dies_in = "score"
    pool = ScorerPool(crew.actors, crew.keeper)

    async def run() -> list[ScoreResult]:
        results = await pool([score_request("a"), score_request("b")])
        while not crew.tally.restarts:
            await asyncio.sleep(0)
        return results

    assert [result.key for result in asyncio.run(run())] == ["a", "b"]
    assert second.methods == ["score"]
    assert crew.tally.resent == {"scorer": 2}


def test_a_lone_scorer_is_waited_for() -> None:
    crew = Crew(role="scorer")
    crew.actors[0].dies_in = "score"
    pool = ScorerPool(crew.actors, crew.keeper)

    async def run() -> list[list[ScoreResult]]:
        return await asyncio.gather(*(pool([score_request(key)]) for key in "abc"))

    got = asyncio.run(run())
    assert [[result.key for result in results] for results in got] == [["a"], ["b"], ["c"]]
    assert len(crew.hired) == 1
    assert crew.hired[0].methods.count("score") == 3


def test_what_ends_every_scorer_is_given_up() -> None:
    crew = Crew(
        role="scorer", max_restarts=99, prepare=lambda actor: setattr(actor, "dies_in", "score")
    )
    crew.actors[0].dies_in = "score"
    pool = ScorerPool(crew.actors, crew.keeper)
    with pytest.raises(EngineError, match="a and 0 more: 4 scorers died over them"):
        asyncio.run(pool([score_request("a")]))


def test_an_engine_that_dies_in_a_push_gets_the_weights_afterwards() -> None:
    crew = Crew(count=2)
    crew.actors[1].dies_in = "load_weights"
    pusher = WeightPusher(crew.actors, crew.keeper)
    pushed = asyncio.run(pusher("models/m1", 1))
    assert (pushed.version, pushed.num_engines) == (1, 2)
    assert [actor.version for actor in crew.actors] == [1, 1]
    assert crew.keeper.weights.current == ("models/m1", 1)
    assert crew.tally.resent == {"push": 1}


def test_an_engine_replaced_while_the_others_still_load_is_pushed_into_again() -> None:
    crew = Crew(count=2)
    slow = crew.actors[1]
    slow.hold = asyncio.Event()
    pusher = WeightPusher(crew.actors, crew.keeper)

    async def run() -> None:
        pushing = asyncio.create_task(pusher("models/m1", 1))
        await asyncio.sleep(0.01)
        assert crew.actors[0].version == 1
        crew.actors[0].alive = False
        await crew.keeper.replace("questioner", 0, GONE)
        assert crew.actors[0].version == 0  # m_1 is not current before all have it
        assert slow.hold is not None
        slow.hold.set()
        await pushing

    asyncio.run(run())
    assert [actor.version for actor in crew.actors] == [1, 1]


def test_a_push_that_fails_leaves_the_current_weights() -> None:
    crew = Crew()

    async def run() -> None:
        async def refuse(model_dir: str, version: int) -> None:
            raise EngineError("these weights are bad")

        crew.actors[0].do_load_weights = refuse  # type: ignore[method-assign,assignment]
        with pytest.raises(EngineError, match="these weights are bad"):
            await WeightPusher(crew.actors, crew.keeper)("models/m1", 1)

    asyncio.run(run())
    assert crew.keeper.weights.current == ("base", 0)
    assert crew.keeper.weights.versions == {0}
    assert crew.hired == []


def trainer(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> TrainerGroup:
    monkeypatch.setattr(pool_module, "ray", SimpleNamespace(put=lambda value: value))
    return TrainerGroup(
        crew.actors,
        base_model_dir=Path("base"),
        models_dir=Path("models"),
        continue_training=False,
        progress=PlainProgress(),
        keeper=crew.keeper,
    )


def test_when_one_rank_dies_all_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(role="trainer", count=2, together=True)
    first, second = crew.actors
    second.dies_in = "train"

    async def fails_before_ray_knows(*arguments: Any) -> None:
        second.alive = False
        raise RayTaskError("train", "", RuntimeError("connection closed by peer"))

    first.do_train = fails_before_ray_knows
    asyncio.run(trainer(crew, monkeypatch)([], 1))
    assert [actor.name for actor in crew.actors] == ["trainer-0'", "trainer-1'"]
    assert crew.dismissed == ["trainer-0", "trainer-1"]
    assert all(actor.methods.count("train") == 1 for actor in crew.actors)
    assert crew.actors[1].calls[-1] == ("train", [], "base", "models/m1", 1)
    assert crew.tally.restarts == {"trainer": 1}
    assert crew.said[0].startswith("trainer died: ")


@pytest.mark.parametrize(
    "error", [DivergenceError("the loss is nan"), RayTaskError("train", "", RuntimeError("bug"))]
)
def test_what_is_no_death_is_raised_as_it_is(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = Crew(role="trainer", count=2, together=True)

    async def fail(*arguments: Any) -> None:
        raise error

    for actor in crew.actors:
        actor.do_train = fail
    with pytest.raises(type(error)):
        asyncio.run(trainer(crew, monkeypatch)([], 1))
    assert (crew.hired, crew.said) == ([], [])


def test_restarts_are_counted_over_all_sittings_and_shown(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    Sittings(count=1).write(store)
    older = store.read_json(SITTINGS_FILE)
    assert older is not None
    for name in ("restarts", "longest_restart", "resent"):
        del older[name]
    store.write_json(SITTINGS_FILE, older)
    total = read_sittings(store)  # of a run that an earlier version began
    for seconds in (31.0, 12.0):
        tally = total.new_tally()
        tally.restarted("questioner", seconds)
        tally.resent["questioner"] += 4
        total = total.plus(tally, 1.0, MemoryPeak(1.0, "pss", 1), {})
    total.write(store)
    summary = summarise_run(
        read_sittings(store).as_tally(), {}, [], "finished", 2.0, MemoryPeak(1.0, "pss", 1), {}
    )
    assert summary["restarts"] == {"questioner": {"count": 2, "longest_s": 31.0}}
    assert summary["resent"] == {"questioner": 8}
    lines = summary_lines({**summary, "repeated_steps": 7})
    assert "optimizer steps done again: 7" in lines
    assert "died and started again: 2 questioner (at most 31 s)" in lines
    assert "requests sent again: 8 questioner" in lines
