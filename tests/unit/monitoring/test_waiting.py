"""Waits that speak."""

import asyncio

import pytest

from stargate.errors import MachineError
from stargate.monitoring import waiting
from stargate.monitoring.waiting import Waiting, await_aloud


def test_a_wait_speaks_every_thirty_seconds() -> None:
    now, said = 0.0, list[str]()
    wait = Waiting(said.append, clock=lambda: now)
    spoken = []
    for now in (0.0, 29.0, 30.0, 31.0, 59.9, 61.0):
        if wait.speak(f"{wait.seconds:.0f} s so far"):
            spoken.append(now)
    assert spoken == [30.0, 61.0]
    assert said == ["30 s so far", "61 s so far"]


async def test_all_are_awaited_by_name_and_the_missing_ones_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "SPEAK_SECONDS", 0.0)
    both, said = asyncio.Event(), set[str]()

    def say(names: str) -> None:
        said.add(names)
        both.set()

    async def later(value: int) -> int:
        await both.wait()
        return value

    assert await await_aloud({"b": later(2), "a": later(1)}, say) == {"b": 2, "a": 1}
    assert said == {"a, b"}


def test_the_first_failure_ends_the_others() -> None:
    cancelled = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise OSError("no such engine")

    with pytest.raises(OSError, match="no such engine"):
        asyncio.run(await_aloud({"a": endless(), "b": failing()}, print))
    assert cancelled == [True]
    with pytest.raises(MachineError, match="not there after 0 s: a"):
        asyncio.run(await_aloud({"a": endless()}, print, limit=0.0))
    assert cancelled == [True, True]
