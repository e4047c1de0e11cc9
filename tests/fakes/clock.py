"""An event loop that waits for nothing: where all tasks wait for timers, the next one is due now.

Not for code that waits for threads, processes or sockets: timers would not wait for these.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Clock(selectors.DefaultSelector):
    """Lets the time pass that a loop wants to spend waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits for somebody else")
        # Like a real clock it never stands still: who waits again because of a rounding error (in
        # aiolimiter) would wait for ever.
        self.now += 1e-9 + (0.0 if ready or timeout is None else timeout)
        return ready


def run_at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, except that sleeping takes no time. `loop.time()` starts at 0."""
    clock = _Clock()

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return clock.now

    with asyncio.Runner(loop_factory=lambda: Loop(clock)) as runner:
        return runner.run(work)


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns once it is so. The minute is for a defect, not for a busy machine."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
