"""Carries out what gpu_phases.py decides: sends actors of a run's actors to bed and wakes them.

    SleepOrder("questioner", 2) -> every Questioner engine: sleep(2)
    SleepOrder("questioner", 0) -> wake_up, or, to one without weights, the current ones

A dead actor needs neither: whoever takes its place is awake, and is started when there is room.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from stargate.actors.rpc.remote import ActorDied, remote
from stargate.actors.runtime.file_transfer import FileAccess
from stargate.resources.gpu_phases import GpuPhases, SleepOrder, Start, opening

# Starts actors, given by name, side by side; raises the first failure.
StartActors = Callable[[Mapping[str, Any]], Awaitable[None]]


class SleepController:
    """The actors that share one GPU, by role. `places` are the actors' own lists."""

    def __init__(self, places: Mapping[str, Sequence[Any]], file_access: FileAccess) -> None:
        self._places = places
        self._file_access = file_access
        self.weights: Callable[[], tuple[str, int]] | None = None  # what a Questioner must hold

    async def start(self, start: StartActors) -> GpuPhases:
        """Starts everybody, one after the other, and sends to bed who can sleep."""
        asleep: dict[str, int] = {}
        for step in opening([role for role, actors in self._places.items() if actors]):
            if isinstance(step, Start):
                for number, actor in enumerate(self._places[step.role]):
                    await start({f"{step.role}-{number}": actor})
            else:
                await self.carry_out(step)
                asleep[step.role] = step.level
        return GpuPhases(asleep, self.carry_out)

    async def carry_out(self, order: SleepOrder) -> None:
        """One order to all actors of a role, side by side. Raises EngineError."""
        actors = list(enumerate(self._places[order.role]))
        await asyncio.gather(*(self._obey(order, number, actor) for number, actor in actors))

    async def _obey(self, order: SleepOrder, number: int, actor: Any) -> None:
        with contextlib.suppress(ActorDied):
            if order.level:
                await remote(actor.sleep.remote(order.level))
            elif not await remote(actor.wake_up.remote()):
                assert self.weights is not None, "nobody sleeps deeply before a run has begun"
                model_dir, version = self.weights()
                async with self._file_access.bring(model_dir, f"{order.role}-{number}") as folder:
                    await remote(actor.load_weights.remote(folder, version))
