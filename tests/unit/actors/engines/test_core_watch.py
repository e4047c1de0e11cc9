"""A core that computes, one that hangs: with processes that are real, and a clock that is not."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from stargate.actors.engines import core_watch
from stargate.actors.engines.core_watch import CoreWatch, looked_after
from stargate.errors import EngineError


@pytest.fixture
def stopped() -> Iterator[psutil.Process]:
    """A process that stands still, as a core after SIGSTOP does."""
    process = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.suspend()
    yield process
    if process.is_running():
        process.kill()
        process.wait()


class Watched:
    """A watch whose core answers when `answer` is set; every look sees `gap` seconds pass."""

    def __init__(self, process: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.gap, self.cpu, self.per_look = 0.0, 7.0, 0.0, 0.0
        self.answer = asyncio.Event()
        self.num_asked = 0
        monkeypatch.setattr(core_watch, "_ANSWER_SECONDS", 0.0)
        monkeypatch.setattr(core_watch, "cpu_seconds", lambda processes: self.cpu)
        self.watch = CoreWatch(self._ask, [process], EngineError, lambda: self.now)

    async def _ask(self) -> None:
        self.num_asked += 1
        await self.answer.wait()

    async def looks_until_it_hangs(self, *, most: int, moves_weights: bool = False) -> int:
        for number in range(most):
            try:
                await self.watch.look(moves_weights=moves_weights)
            except EngineError:
                return number
            self.now += self.gap
            self.cpu += self.per_look
        return most


async def test_a_core_that_stands_still_is_ended(
    stopped: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Watched(stopped, monkeypatch)
    assert await core.looks_until_it_hangs(most=100) == 5  # after 35 s
    assert stopped.wait(timeout=60) == -9  # though it could not hear a signal that asks
    assert core.num_asked == 1


async def test_one_that_computes_gets_the_time_of_the_longest_step(
    stopped: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Watched(stopped, monkeypatch)
    core.per_look = 0.01
    assert await core.looks_until_it_hangs(most=80) == 80  # 560 s
    assert await core.looks_until_it_hangs(most=100) == 6


async def test_one_that_takes_weights_from_a_slow_disk_gets_more(
    stopped: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Watched(stopped, monkeypatch)
    assert await core.looks_until_it_hangs(most=100, moves_weights=True) == 26  # 182 s


async def test_an_answer_ends_the_silence(
    stopped: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Watched(stopped, monkeypatch)
    assert await core.looks_until_it_hangs(most=5) == 5
    core.answer.set()
    await asyncio.sleep(0)
    await core.watch.look(moves_weights=False)
    core.answer.clear()
    assert await core.looks_until_it_hangs(most=5) == 5
    assert core.num_asked == 2


async def test_time_in_which_all_stood_still_is_no_silence_of_the_core(
    stopped: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Watched(stopped, monkeypatch)
    await core.watch.look(moves_weights=False)
    core.now += 3600.0  # the machine slept, or somebody's Ctrl-Z
    await core.watch.look(moves_weights=False)
    assert stopped.is_running()


async def test_an_engine_without_a_supervisor_is_looked_after(
    stopped: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Watched(stopped, monkeypatch)
    monkeypatch.setattr(core_watch, "_LOOK_SECONDS", 0.0)

    class Engine:
        async def check_health(self) -> None:
            core.now += core.gap
            await core.watch.look(moves_weights=False)

    async with looked_after(Engine()):
        while stopped.is_running() and stopped.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0)
