"""A turn that never ends: begun anew once, then dropped and counted; if all hang, the run stops."""

import asyncio
from pathlib import Path

import pytest

from stargate.errors import EngineError, RecordDropped
from stargate.evaluation.playing import EvaluationPairs, play_all
from stargate.rollout.deadline import TurnWatch
from stargate.rollout.dialogue import play
from stargate.types import DialoguePlan, GenerateRequest, Generation
from tests.fakes.scripted import FixedRoleplay, ScriptedGenerate, make_pair
from tests.unit.rollout.test_dialogue import questioner
from tests.unit.test_pair_steps import PAIRS, iterate, roles, run_context, say

DEADLINE_S = 0.15


class Hangs(ScriptedGenerate):
    """Never answers the requests that `hangs` names; keeps those that were cancelled."""

    def __init__(self, *hangs: str) -> None:
        super().__init__(say)
        self.hangs = hangs
        self.cancelled: list[str] = []

    async def __call__(self, request: GenerateRequest) -> Generation:
        if any(name in request.request_id for name in self.hangs):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(request.request_id)
                raise
        return await super().__call__(request)


HASTY = {"num_dialogues": 3, "turns": [2], "turn_timeout_s": DEADLINE_S}


def test_a_late_turn_is_begun_anew_and_the_turns_before_it_stand() -> None:
    generate = Hangs("t0/t:p/0/q1")
    plan = DialoguePlan("t0/t:p/0", make_pair(), 0, 3, seed=7)
    watch = TurnWatch(DEADLINE_S)
    dialogue = asyncio.run(play(plan, questioner(generate), FixedRoleplay(), watch))
    assert len(dialogue.turns) == 3
    assert generate.cancelled == ["t0/t:p/0/q1"]
    # Under a session of its own: its request id is not that of the late one, and another replica
    # may take it. The turn after it is the dialogue's own again.
    sent = [(r.session, r.request_id) for r in generate.requests]
    assert sent == [
        ("t0/t:p/0", "t0/t:p/0/q0"),
        ("t0/t:p/0#2", "t0/t:p/0#2/q1"),
        ("t0/t:p/0", "t0/t:p/0/q2"),
    ]
    assert watch.num_repeated == 1


def test_a_repeated_turn_asks_for_the_same_text() -> None:
    plan = DialoguePlan("t0/t:p/0", make_pair(), 0, 2, seed=7)
    prompts = []
    for generate in (ScriptedGenerate(say), Hangs("t0/t:p/0/q1")):
        asyncio.run(play(plan, questioner(generate), FixedRoleplay(), TurnWatch(DEADLINE_S)))
        prompts.append([(r.prompt_ids, r.sampling) for r in generate.requests])
    assert prompts[0] == prompts[1]


def test_a_turn_that_is_late_twice_drops_its_dialogue_only(tmp_path: Path) -> None:
    context = run_context(tmp_path, rollout=HASTY)
    generate = Hangs("t1:p/1/q0", "t1:p/1#2/q0")
    iterate(context, generate=generate)
    assert context.counters.dropped == {"turn_timeout": 1}
    [example] = context.counters.dropped_examples["turn_timeout"]
    assert example == "t0/t1:p/1 turn 1: turn_timeout: no end within 0.15 s, 2 times"
    assert len(list(context.store.read("t0", "dialogues"))) == 11
    assert len(list(context.store.read("t0", "examples"))) == 4


def test_a_response_has_the_deadline_too(tmp_path: Path) -> None:
    context = run_context(tmp_path, rollout=HASTY)
    generate = Hangs("t0/t1:p/1/response", "t0/t1:p/1#2/response")
    iterate(context, generate=generate)
    assert context.counters.dropped == {"turn_timeout": 1}
    assert len(list(context.store.read("t0", "examples"))) == 3


def test_when_every_turn_hangs_the_run_stops_and_says_so(tmp_path: Path) -> None:
    context = run_context(tmp_path, rollout=HASTY)
    with pytest.raises(EngineError, match=r"no turn ends any more: 8 in a row .* 2 x 0\.15 s"):
        iterate(context, generate=Hangs("t0/"))


def test_an_evaluation_has_the_deadline_too(tmp_path: Path) -> None:
    context = run_context(tmp_path, rollout=HASTY)
    generate = Hangs("t1:p/1/q2", "t1:p/1#2/q2")
    pairs = EvaluationPairs(PAIRS)
    played = asyncio.run(play_all(0, pairs, roles(generate=generate), context))
    assert sum(map(len, played.values())) == 7
    assert context.counters.dropped == {"turn_timeout": 1}


async def test_slow_turns_in_between_show_that_not_all_hang() -> None:
    async def hang(attempt: int) -> int:
        await asyncio.Event().wait()
        return attempt

    async def answer(attempt: int) -> int:
        return attempt

    async def silent(attempt: int) -> int:
        raise RecordDropped("empty_question", "d", "said nothing")

    watch = TurnWatch(0.001)
    for ends in (answer, silent):
        for _ in range(7):
            with pytest.raises(RecordDropped, match="turn_timeout"):
                await watch.run(hang, "d")
        if ends is silent:
            with pytest.raises(RecordDropped, match="empty_question"):
                await watch.run(ends, "d")
        else:
            await watch.run(ends, "d")
    for _ in range(7):
        with pytest.raises(RecordDropped, match="turn_timeout"):
            await watch.run(hang, "d")
    with pytest.raises(EngineError):
        await watch.run(hang, "d")


def test_a_timeout_of_the_turns_own_is_no_late_turn() -> None:
    async def fails(attempt: int) -> int:
        raise TimeoutError("the socket's own")

    with pytest.raises(TimeoutError, match="the socket's own"):
        asyncio.run(TurnWatch(60.0).run(fails, "d"))
