"""Who sleeps when on a shared GPU: literal sequences, with fakes in the place of engines."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from stargate.errors import EngineError
from stargate.resources.gpu_phases import GpuPhase, GpuPhases, SleepOrder, Start, opening, orders

AWAKE = {"questioner": 0, "roleplayer": 0, "scorer": 1}


def test_orders_of_one_iteration_first_to_bed_then_up() -> None:
    asleep = {"questioner": 1, "roleplayer": 1, "scorer": 1}
    given = []
    for phase in (GpuPhase.PLAY, GpuPhase.SCORE, GpuPhase.PLAY, GpuPhase.TRAIN):
        now = orders(asleep, phase)
        asleep |= {order.role: order.level for order in now}
        given.append([(order.role, order.level) for order in now])
    assert given == [
        [("questioner", 0), ("roleplayer", 0)],
        [("questioner", 1), ("roleplayer", 1), ("scorer", 0)],
        [("scorer", 1), ("questioner", 0), ("roleplayer", 0)],
        # New weights come after training: the Questioner's old ones are not kept.
        [("questioner", 2), ("roleplayer", 1)],
    ]
    assert orders(asleep, GpuPhase.PUSH) == []
    assert orders({**asleep, "scorer": 0}, GpuPhase.PUSH) == [SleepOrder("scorer", 1)]
    # One that sleeps lightly is not woken to sleep deeper; a role that is not there gets no order.
    assert orders({"questioner": 1, "scorer": 0}, GpuPhase.TRAIN) == [SleepOrder("scorer", 1)]


def test_actors_are_started_one_by_one() -> None:
    assert opening(["questioner", "roleplayer", "scorer", "trainer", "dialogue-worker"]) == [
        *(Start("questioner"), Start("roleplayer")),
        *(SleepOrder("questioner", 1), SleepOrder("roleplayer", 1)),
        *(Start("scorer"), SleepOrder("scorer", 1)),
        *(Start("trainer"), Start("dialogue-worker")),
    ]
    assert opening(["questioner"]) == [Start("questioner"), SleepOrder("questioner", 1)]


class Diary:
    """Writes down what happens in which order."""

    def __init__(self, asleep: dict[str, int] | None = None) -> None:
        self.lines: list[str] = []
        self.turns = GpuPhases(asleep or AWAKE, self.carry_out)
        self.problem: Exception | None = None

    async def carry_out(self, order: SleepOrder) -> None:
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem
        self.lines.append(f"{order.role} -> {order.level}")

    def call(self, phase: GpuPhase, steps: int = 3) -> Callable[[str], Awaitable[str]]:
        async def work(name: str) -> str:
            self.lines.append(f"{name} begins")
            for _ in range(steps):
                await asyncio.sleep(0)
            self.lines.append(f"{name} ends")
            return name

        return self.turns.during(phase, work)


def test_an_iteration_in_turns() -> None:
    diary = Diary({"questioner": 1, "roleplayer": 1, "scorer": 1})

    async def run() -> None:
        play, score = diary.call(GpuPhase.PLAY), diary.call(GpuPhase.SCORE)
        await asyncio.gather(play("d0"), play("d1"))
        assert await score("s0") == "s0"
        await play("response")
        await diary.call(GpuPhase.TRAIN)("train")
        await diary.call(GpuPhase.PUSH)("push")
        diary.turns.woken("questioner")
        await play("d2")

    asyncio.run(run())
    assert diary.lines == [
        *("questioner -> 0", "roleplayer -> 0"),
        *("d0 begins", "d1 begins", "d0 ends", "d1 ends"),
        *("questioner -> 1", "roleplayer -> 1", "scorer -> 0", "s0 begins", "s0 ends"),
        *("scorer -> 1", "questioner -> 0", "roleplayer -> 0", "response begins", "response ends"),
        *("questioner -> 2", "roleplayer -> 1", "train begins", "train ends"),
        *("push begins", "push ends"),
        *("roleplayer -> 0", "d2 begins", "d2 ends"),
    ]


def test_a_shift_ends_only_when_nobody_works_and_who_comes_meanwhile_joins_it() -> None:
    diary = Diary()

    async def run() -> None:
        play, score = diary.call(GpuPhase.PLAY), diary.call(GpuPhase.SCORE, 1)
        first = asyncio.ensure_future(play("d0"))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(score("s0"))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(play("d1"))  # joins, though somebody waits
        await asyncio.gather(first, waiting, second)

    asyncio.run(run())
    begins = [line for line in diary.lines if "begins" in line or "->" in line]
    assert begins == [
        *("d0 begins", "d1 begins"),
        *("questioner -> 1", "roleplayer -> 1", "scorer -> 0", "s0 begins"),
    ]
    assert diary.lines.index("d1 ends") < diary.lines.index("questioner -> 1")


def test_a_waiter_that_gives_up_changes_nothing_and_blocks_nobody() -> None:
    diary = Diary()

    async def run() -> None:
        play, score = diary.call(GpuPhase.PLAY, 20), diary.call(GpuPhase.SCORE)
        playing = asyncio.ensure_future(play("d0"))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(score("s0"))
        await asyncio.sleep(0)
        waiting.cancel()
        await playing
        await play("d1")
        # And one that is cancelled during the very change.
        late = asyncio.ensure_future(score("s1"))
        for _ in range(2):
            await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait_for(play("d2"), 5)

    asyncio.run(run())
    assert [line for line in diary.lines if line.endswith("begins")] == [
        *("d0 begins", "d1 begins", "d2 begins")
    ]


def test_an_actor_that_is_started_anew_waits_for_room_and_never_locks_a_shift() -> None:
    diary = Diary()

    async def run() -> None:
        replacing = diary.turns.on(GpuPhase.PLAY, GpuPhase.PUSH)
        # An engine that died of the push is replaced within it.
        async with asyncio.timeout(5), diary.turns.on(GpuPhase.PUSH), replacing:
            diary.lines.append("replaced")
        training = asyncio.ensure_future(diary.call(GpuPhase.TRAIN, 10)("train"))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5), diary.turns.on(GpuPhase.PLAY, GpuPhase.PUSH):
            diary.lines.append("room")
        await training

    asyncio.run(run())
    assert diary.lines[0] == "replaced"
    assert diary.lines.index("train ends") < diary.lines.index("room")


def test_what_keeps_a_shift_from_beginning_reaches_all_who_wait() -> None:
    diary = Diary()
    diary.problem = EngineError("questioner-0 does not sleep")

    async def run() -> list[object]:
        score = diary.call(GpuPhase.SCORE)
        failed = await asyncio.gather(score("s0"), score("s1"), return_exceptions=True)
        diary.problem = None
        assert await score("s2") == "s2"  # the next one tries again
        return list(failed)

    failed = asyncio.run(run())
    assert [str(error) for error in failed] == ["questioner-0 does not sleep"] * 2


def test_work_that_fails_ends_its_shift_too() -> None:
    diary = Diary()

    async def fail() -> None:
        raise EngineError("no")

    async def run() -> None:
        with pytest.raises(EngineError, match="no"):
            await diary.turns.during(GpuPhase.PLAY, fail)()
        await asyncio.wait_for(diary.call(GpuPhase.SCORE)("s0"), 5)

    asyncio.run(run())
