"""Tells a core that computes one long step from one that hangs.

    ask -> answered within a moment                       it is well
        -> silent, uses CPU time                          it computes: given much time
        -> silent, uses none (stopped, a deadlock)        given little
                                                          -> after that it hangs

vLLM's core answers between two steps only. A step on a CPU can take a minute, and a core that waits
for a GPU spins; one that stands still uses nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Protocol

import psutil

from stargate.actors.engines.startup import cpu_seconds, kill_processes
from stargate.errors import EngineError

# Seconds between looks at an engine that has no supervisor.
_LOOK_SECONDS = 5.0
# Seconds that a look waits for the core's answer: less than the supervisor waits for the look.
_ANSWER_SECONDS = 2.0
# Seconds of silence without CPU time after which the core hangs.
_IDLE_SECONDS = 30.0
# Seconds of silence after which it hangs whatever it uses: no step takes as long.
_BUSY_SECONDS = 600.0
# Both may be longer by this while weights are moved, from any disk.
_PUSH_PATIENCE = 6.0
# Most seconds that count between two looks: where there were more, all may have stood still.
_MAX_GAP = 10.0


class CoreWatch:
    """Looks after one core. `ask` ends when the core answers."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[object]],
        processes: Collection[psutil.Process],
        fail: Callable[[str], EngineError],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`processes` are all of the core's; `fail` makes the error of an engine without one."""
        self._ask = ask
        self._processes = processes
        self._fail = fail
        self._clock = clock
        self._asking: asyncio.Future[object] | None = None
        self._cpu = self._looked_at = self._silent = self._idle = 0.0

    async def look(self, *, moves_weights: bool) -> None:
        """Returns within seconds: if the core answers, and if it may compute.

        Raises what `ask` raises. Ends a core that hangs, so that all that wait for it hear what
        they hear of a death, and raises what `fail` makes.
        """
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
            self._cpu, self._looked_at = cpu_seconds(self._processes), self._clock()
            self._silent = self._idle = 0.0
        asking = self._asking
        await asyncio.wait({asking}, timeout=_ANSWER_SECONDS)
        if asking.done():
            if self._asking is asking:
                self._asking = None
            asking.result()
            return
        now, cpu = self._clock(), cpu_seconds(self._processes)
        passed = min(now - self._looked_at, _MAX_GAP)
        self._silent += passed
        self._idle = 0.0 if cpu > self._cpu else self._idle + passed
        self._cpu, self._looked_at = cpu, now
        patience = _PUSH_PATIENCE if moves_weights else 1.0
        if self._idle < patience * _IDLE_SECONDS and self._silent < patience * _BUSY_SECONDS:
            return
        error = self._fail(
            f"vLLM's core hung and was ended: no answer for {self._silent:.0f} s, no CPU time for "
            f"{self._idle:.0f} s"
        )
        kill_processes(self._processes)
        raise error


class Checked(Protocol):
    """What engine.py's Engine is here."""

    async def check_health(self) -> None: ...


@asynccontextmanager
async def looked_after(engine: Checked) -> AsyncIterator[None]:
    """While an engine of this process is used, which no supervisor watches: a core that hangs is
    ended, so that every call to it ends.
    """

    async def look() -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await engine.check_health()

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait({looking})
        # What it found, every call to the engine has raised.
        looking.cancelled() or looking.exception()
