"""Dialogues begin as fast as questions are written."""

import asyncio

import pytest

from stargate.config.run import RolloutConfig
from stargate.errors import RecordDropped
from stargate.rollout.deadline import TurnWatch
from stargate.rollout.dialogue import play
from stargate.rollout.slow_start import SlowStart
from stargate.types import DialoguePlan, GenerateRequest, Generation, StopReason
from tests.fakes.scripted import FixedRoleplay, ScriptedGenerate, text_ids
from tests.unit.rollout.test_dialogue import PAIR, questioner


class Hall:
    """Dialogues that write a question, and end, when they are told to."""

    def __init__(self, start: SlowStart) -> None:
        self.begun: list[int] = []
        self._start = start
        self._signals: dict[int, asyncio.Queue[str]] = {}

    def enter(self, number: int) -> "asyncio.Task[None]":
        self._signals[number] = asyncio.Queue()
        return asyncio.create_task(self._one(number))

    async def _one(self, number: int) -> None:
        async with self._start.dialogue() as wrote_question:
            self.begun.append(number)
            while await self._signals[number].get() == "question":
                wrote_question()

    async def tell(self, number: int, signal: str) -> None:
        self._signals[number].put_nowait(signal)
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_more_begins_for_each_question() -> None:
    hall = Hall(SlowStart(2))
    tasks = [hall.enter(number) for number in range(6)]
    await settle()
    assert hall.begun == [0, 1]
    await hall.tell(1, "question")
    assert hall.begun == [0, 1, 2]
    await hall.tell(1, "question")  # of its second turn
    assert hall.begun == [0, 1, 2, 3]
    await hall.tell(1, "end")  # it has written two: its end is no other's beginning
    assert hall.begun == [0, 1, 2, 3]
    await hall.tell(0, "end")  # it was dropped
    assert hall.begun == [0, 1, 2, 3, 4]
    for number in (2, 3, 4, 5):
        await hall.tell(number, "end")
    await asyncio.gather(*tasks)


async def test_it_begins_slowly_again_when_all_have_ended() -> None:
    hall = Hall(SlowStart(1))
    for number in (0, 1):
        hall.enter(number)
    await settle()
    await hall.tell(0, "question")
    await hall.tell(1, "question")
    for number in (0, 1):
        await hall.tell(number, "end")
    for number in (2, 3):
        hall.enter(number)
    await settle()
    assert hall.begun == [0, 1, 2]
    await hall.tell(2, "end")
    await hall.tell(3, "end")
    assert hall.begun == [0, 1, 2, 3]


async def test_a_cancelled_one_keeps_nobody_waiting() -> None:
    hall = Hall(SlowStart(1))
    tasks = [hall.enter(number) for number in range(4)]
    await settle()
    tasks[1].cancel()  # it waits
    await settle()
    await hall.tell(0, "question")
    assert hall.begun == [0, 2]
    tasks[2].cancel()  # it plays, and has written nothing
    await settle()
    assert hall.begun == [0, 2, 3]
    await hall.tell(0, "end")
    await hall.tell(3, "end")
    assert hall._start._num_playing == 0


async def test_one_that_is_cancelled_as_it_is_let_in_passes_its_place_on() -> None:
    hall = Hall(SlowStart(1))
    tasks = [hall.enter(number) for number in range(3)]
    await settle()
    hall._start._add_place()
    tasks[1].cancel()  # its turn has come, but it has not run yet
    await settle()
    assert hall.begun == [0, 2]
    assert hall._start._num_playing == 2


async def test_zero_lets_all_begin() -> None:
    hall = Hall(SlowStart(0))
    for number in range(40):
        hall.enter(number)
    await settle()
    assert hall.begun == list(range(40))


async def test_the_dialogues_are_the_same_with_and_without() -> None:
    async def say(request: GenerateRequest) -> Generation:
        await asyncio.sleep(0)
        text = f"{request.request_id} {request.sampling.seed % 97}?"
        length = len(request.prompt_ids)
        return Generation(text, text_ids(text), StopReason.STOP, 1, length)

    async def played(start: SlowStart | None) -> list[object]:
        ask = questioner(say)  # type: ignore[arg-type]
        plans = [DialoguePlan(f"t0/t:p/{n}", PAIR, n, 1 + n % 3, seed=n) for n in range(30)]
        watch = TurnWatch(60.0)
        playing = (play(plan, ask, FixedRoleplay(), watch, start) for plan in plans)
        return [(d.id, d.seed, d.turns) for d in await asyncio.gather(*playing)]

    assert await played(SlowStart(3)) == await played(SlowStart(1)) == await played(None)


async def test_a_dropped_dialogue_lets_the_next_one_begin() -> None:
    start = SlowStart(1)
    ask = questioner(ScriptedGenerate(lambda request: " "))
    plans = [DialoguePlan(f"t0/t:p/{n}", PAIR, n, 1, seed=n) for n in range(5)]
    playing = asyncio.gather(
        *(play(plan, ask, FixedRoleplay(), TurnWatch(60.0), start) for plan in plans),
        return_exceptions=True,
    )
    played = await asyncio.wait_for(playing, 10)
    assert [type(one) for one in played] == [RecordDropped] * 5


def test_the_default_and_what_is_refused() -> None:
    assert RolloutConfig().slow_start == 16
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        RolloutConfig(slow_start=-1)
