"""Waits that speak: every 30 s they say what is awaited, so that nobody takes them for hung."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from stargate.errors import MachineError

SPEAK_SECONDS = 30.0
_Result = TypeVar("_Result")


class Waiting:
    """A wait that looks again and again, by itself, whether what it awaits is there.

    waiting = Waiting(say)
    while not is_there():
        waiting.speak(f"still waiting for it, {waiting.seconds:.0f} s so far")
        time.sleep(1.0)
    """

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock
        self._started = self._spoke_at = clock()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return self._clock() - self._started

    def speak(self, text: str) -> bool:
        """Says the text, unless this wait began or spoke within the last 30 s; returns whether."""
        now = self._clock()
        if now - self._spoke_at < SPEAK_SECONDS:
            return False
        self._spoke_at = now
        self._say(text)
        return True


async def await_aloud(
    awaited: Mapping[str, Awaitable[_Result]], say: Callable[[str], None], limit: float = math.inf
) -> dict[str, _Result]:
    """Awaits all; every 30 s `say` gets the names of those that are not there yet ("a, b").

    Raises the first failure, or MachineError after `limit` seconds; then the others are cancelled.
    """
    tasks = {asyncio.ensure_future(call): name for name, call in awaited.items()}
    waiting = set(tasks)
    end = time.monotonic() + limit
    try:
        while waiting:
            left = end - time.monotonic()
            done, waiting = await asyncio.wait(
                waiting,
                timeout=max(0.0, min(SPEAK_SECONDS, left)),
                return_when=asyncio.FIRST_EXCEPTION,
            )
            for task in done:
                task.result()
            names = ", ".join(sorted(tasks[task] for task in waiting))
            if waiting and left <= 0:
                raise MachineError(f"not there after {limit:.0f} s: {names}")
            if waiting:
                say(names)
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
    return {name: task.result() for task, name in tasks.items()}
