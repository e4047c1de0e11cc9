"""Dialogues in workers are the dialogues that the driver would have played. No Ray."""

import asyncio
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.rpc.batched_calls import BatchedServer, CallBatch, Delivery
from stargate.actors.rpc.remote import ActorDied
from stargate.actors.runtime import dialogue_worker
from stargate.actors.runtime.actor_slots import HeldWeights
from stargate.actors.runtime.clients import GuardedWorkers
from stargate.actors.runtime.dialogue_worker import DialogueWorker, WorkerSpec
from stargate.actors.runtime.supervisor import Supervisor
from stargate.config.run import RunConfig
from stargate.errors import EngineError, RecordDropped
from stargate.pair_steps import play_pairs
from stargate.records.store import RunStore
from stargate.rollout.dialogue import plan_dialogues
from stargate.text.prompts import load_prompts
from stargate.training_loop import run_iteration
from stargate.types import Dialogue, DialoguePlan, GenerateRequest, Generation, StopReason
from tests.fakes.scripted import byte_chat, make_pair, text_ids
from tests.unit.test_pair_steps import PAIRS, roles, run_context

PROMPTS = load_prompts("paper").model_dump()


class Handle:
    """An actor handle with `exchange.remote`; what travels is pickled."""

    def __init__(self, exchange: Callable[[CallBatch[Any]], Any]) -> None:
        self._exchange = exchange
        self.exchange = self
        self.dead = False

    async def remote(self, batch: CallBatch[Any]) -> Delivery[Any]:
        if self.dead:
            raise ActorDied("an actor died: killed")
        delivery = await self._exchange(pickle.loads(pickle.dumps(batch)))
        if self.dead:
            raise ActorDied("an actor died: killed")
        received: Delivery[Any] = pickle.loads(pickle.dumps(delivery))
        return received


class FakeEngine:
    """Says its name and the number of the prompt's tokens; keeps the requests."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[GenerateRequest] = []
        self.handle = Handle(BatchedServer(self._generate).exchange)

    async def _generate(self, request: GenerateRequest) -> Generation:
        self.requests.append(request)
        text = f"{self.name}{len(request.prompt_ids)}?"
        return Generation(text, text_ids(text), StopReason.STOP, 3, len(request.prompt_ids))


def config(num_workers: int = 2, max_model_len: int = 2048, **rollout: object) -> RunConfig:
    sampling = {"max_new_tokens": 20}
    return RunConfig.model_validate(
        {
            "rollout": {"num_dialogues": 3, "turns": [2], "num_workers": num_workers, **rollout},
            "questioner": {"sampling": sampling, "engine": {"max_model_len": max_model_len}},
            "roleplayer": {"sampling": sampling},
        }
    )


@pytest.fixture(autouse=True)
def bytes_as_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue_worker, "load_chat_formats", lambda *_: (byte_chat(),) * 2)


async def make_workers(
    settings: RunConfig, asking: Sequence[FakeEngine], answering: Sequence[FakeEngine]
) -> list[DialogueWorker]:
    spec = WorkerSpec(settings, "m0", "m0", None, PROMPTS, PROMPTS)
    handles = [[engine.handle for engine in engines] for engines in (asking, answering)]
    workers = [DialogueWorker(spec, n, *handles) for n in range(settings.rollout.num_workers)]
    for worker in workers:
        await worker.start()
    return workers


def pool_of(workers: Sequence[DialogueWorker]) -> tuple[GuardedWorkers, list[Handle]]:
    handles = [Handle(worker.exchange) for worker in workers]
    held = HeldWeights("m0")
    held.current = ("m3", 3)
    supervisor = Supervisor([], held, 0, lambda actor: None, lambda text: None)  # replaces nobody
    return GuardedWorkers(handles, supervisor), handles


def plans(settings: RunConfig, num_pairs: int = 4) -> list[DialoguePlan]:
    pairs = [make_pair(persona=f"p{number}") for number in range(num_pairs)]
    return [p for of_pair in plan_dialogues(pairs, "t0", 0, settings.rollout) for p in of_pair]


def played_by(num_workers: int) -> list[Dialogue]:
    async def scenario() -> list[Dialogue]:
        settings = config(num_workers)
        workers = await make_workers(settings, [FakeEngine("q")], [FakeEngine("a")])
        pool, _ = pool_of(workers)
        return await asyncio.gather(*(pool(plan) for plan in plans(settings)))

    return asyncio.run(scenario())


def texts(dialogues: Sequence[Dialogue]) -> list[tuple[object, ...]]:
    return [(d.id, d.seed, d.policy_version, d.turns) for d in dialogues]


def test_the_dialogues_do_not_depend_on_the_number_of_workers() -> None:
    one = played_by(1)
    assert texts(one) == texts(played_by(3))
    assert [d.id for d in one[:4]] == ["t0/t:p0/0", "t0/t:p0/1", "t0/t:p0/2", "t0/t:p1/0"]
    assert {len(d.turns) for d in one} == {2}


async def test_every_worker_keeps_to_its_engines_and_a_pair_to_its_worker() -> None:
    settings = config(2)
    asking = [FakeEngine(name) for name in "wxyz"]
    answering = [FakeEngine(name) for name in "ab"]
    pool, _ = pool_of(await make_workers(settings, asking, answering))
    await asyncio.gather(*(pool(plan) for plan in plans(settings)))
    home = [{r.session.split("/")[1] for r in e.requests} for e in answering]
    assert len(home[0]) == len(home[1]) == 2
    assert not home[0] & home[1]
    for number, engine in enumerate(asking):
        assert {r.session.split("/")[1] for r in engine.requests} <= home[number % 2]
        assert engine.requests


async def test_one_call_brings_many_plans() -> None:
    settings = config(1)
    [worker] = await make_workers(settings, [FakeEngine("q")], [FakeEngine("a")])
    pool, _ = pool_of([worker])
    made = plans(settings, num_pairs=10)
    await asyncio.gather(*(pool(plan) for plan in made))
    assert pool.num_calls <= 3
    stats = await worker.stats()
    assert stats.num_requests == 2 * 2 * len(made)
    assert stats.num_calls < stats.num_requests / 4


async def test_a_dropped_dialogue_is_a_value_that_is_raised_here() -> None:
    settings = config(1, max_model_len=30)
    long = make_pair(gold="g", facts=("x" * 9000,))
    [worker] = await make_workers(settings, [FakeEngine("q")], [FakeEngine("a")])
    pool, _ = pool_of([worker])
    with pytest.raises(RecordDropped, match="prompt_too_long"):
        await pool(DialoguePlan("t0/x/0", long, 0, 1, seed=1))


async def test_the_others_play_what_a_dead_worker_had() -> None:
    expected = texts(await asyncio.to_thread(played_by, 1))
    settings = config(2)
    asking, answering = FakeEngine("q"), FakeEngine("a")
    pool, handles = pool_of(await make_workers(settings, [asking], [answering]))
    dialogues = [asyncio.ensure_future(pool(plan)) for plan in plans(settings)]
    await asyncio.sleep(0)
    handles[0].dead = True
    played = await asyncio.gather(*dialogues)
    assert texts(played) == expected
    assert pool._supervisor.counters.resent == {"dialogue-worker": 6}
    handles[1].dead = True
    with pytest.raises(EngineError, match="dialogue-worker"):
        await pool(plans(settings)[0])


async def test_an_unstarted_worker_says_so() -> None:
    spec = WorkerSpec(config(1), "m0", "m0", None, PROMPTS, PROMPTS)
    worker = DialogueWorker(spec, 0, [FakeEngine("q").handle], [FakeEngine("a").handle])
    pool, _ = pool_of([worker])
    with pytest.raises(EngineError, match="it was not started"):
        await pool(plans(config(1))[0])


def test_an_iteration_plays_through_the_seam(tmp_path: Path) -> None:
    """The same records as when the driver plays."""

    class Play:
        def __init__(self) -> None:
            self.ids: list[str] = []

        async def __call__(self, plan: DialoguePlan) -> Dialogue:
            self.ids.append(plan.dialogue_id)
            return await here(plan)

    context = run_context(tmp_path / "workers")
    here, play = context.player(roles()), Play()
    asyncio.run(run_iteration(0, PAIRS, roles(play=play), context))
    asyncio.run(play_pairs("t0", PAIRS, roles(), run_context(tmp_path / "driver")))
    assert len(set(play.ids)) == 12

    def rows(root: Path) -> list[dict[str, Any]]:
        found = [dict(row, seconds=0) for row in RunStore(root).read("t0", "dialogues")]
        return sorted(found, key=lambda row: row["id"])

    assert rows(tmp_path / "workers") == rows(tmp_path / "driver")
