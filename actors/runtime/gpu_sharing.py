"""Carries out what gpu_phases.py decides: sends actors of a run's actors to bed and wakes them.

    questioner, 2 -> every Questioner engine: sleep(2)
    questioner, 0 -> wake_up, or, to one without weights, the current ones

A dead actor needs neither: whoever takes its place is awake, and is started when there is room.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from stargate.actors.rpc.remote import ActorDied, remote
from stargate.actors.runtime.actor_slots import HeldWeights
from stargate.actors.runtime.file_transfer import FileAccess
from stargate.resources.cluster import ENGINES
from stargate.resources.gpu_phases import GpuPhases

# Starts actors, given by name, side by side; raises the first failure.
StartActors = Callable[[Mapping[str, Any]], Awaitable[None]]


class SleepController:
    """The actors that share one GPU, by role. `places` are the run's own lists."""

    def __init__(
        self, places: Mapping[str, Sequence[Any]], weights: HeldWeights, file_access: FileAccess
    ) -> None:
        self._places = places
        self._weights = weights
        self._file_access = file_access

    async def start(self, start: StartActors) -> GpuPhases:
        """Starts everybody, one after the other, as each measures the memory it gets.

        Engines first and beside each other, as they play; then they sleep to make room.
        """
        asleep: dict[str, int] = {}
        others = [role for role in self._places if role not in (*ENGINES, "scorer")]
        for roles, can_sleep in ((ENGINES, True), (["scorer"], True), (others, False)):
            present = [role for role in roles if self._places[role]]
            for role in present:
                for number, actor in enumerate(self._places[role]):
                    await start({f"{role}-{number}": actor})
            for role in present if can_sleep else ():
                await self.carry_out(role, 1)
                asleep[role] = 1
        return GpuPhases(asleep, self.carry_out)

    async def carry_out(self, role: str, level: int) -> None:
        """One order to all actors of a role, side by side. Raises EngineError."""
        actors = enumerate(self._places[role])
        await asyncio.gather(*(self._obey(level, f"{role}-{n}", actor) for n, actor in actors))

    async def _obey(self, level: int, name: str, actor: Any) -> None:
        with contextlib.suppress(ActorDied):
            if level:
                await remote(actor.sleep.remote(level))
            elif not await remote(actor.wake_up.remote()):
                model_dir, version = self._weights.current
                async with self._file_access.bring(model_dir, name) as folder:
                    await remote(actor.load_weights.remote(folder, version))
