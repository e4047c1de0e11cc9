"""The passes that the rollout benchmark compares, over one set of running engines.

    pipeline   dialogues as a run plays them                          -> Played, with all requests
    ceiling    those requests again, independent, all submitted at once
    lock_step  those requests again, turn by turn, role by role
    reload     the same with the role's engines restarted each time

Every pass begins with empty prefix caches. A replayed request has the same prompt, seed, sampling
and output length, and is submitted inside its engine's process: replays pay for no remote call and
no prompt building, which is in their favour.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.spawn import end_actors, spawn_engine
from stargate.benchmarks.processes import cpu_seconds, used
from stargate.benchmarks.rollout_figures import (
    QUESTIONER,
    ROLEPLAYER,
    EngineRecord,
    Served,
    Work,
    phases,
    place_of,
)
from stargate.errors import RecordDropped
from stargate.launch.system import RunningSystem
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.rollout.tasks import run_bounded
from stargate.types import Dialogue, DialoguePlan

_Done = TypeVar("_Done")
ROLES = (QUESTIONER, ROLEPLAYER)
Engine = tuple[str, int]  # role and number
# What each engine served, in the order in which it came.
Recorded = Mapping[Engine, Sequence[Served]]


@dataclass(frozen=True)
class Played:
    """The pipeline's pass: its dialogues and what the engines did for them.

    `cpu`: CPU seconds of each kind of process.
    """

    dialogues: Sequence[Dialogue]
    seconds: float
    cpu: Mapping[str, float]
    num_dropped: int
    records: Mapping[Engine, EngineRecord]

    @property
    def num_turns(self) -> int:
        return sum(len(dialogue.turns) for dialogue in self.dialogues)

    @property
    def recorded(self) -> Recorded:
        return {engine: record.served for engine, record in self.records.items()}

    @property
    def work(self) -> Work:
        served = chain.from_iterable(self.recorded.values())
        return sum((Work.of(s.request, s.num_generated, s.num_cached) for s in served), Work())

    def of_role(self, role: str) -> list[EngineRecord]:
        return [record for (name, _), record in self.records.items() if name == role]


@dataclass(frozen=True)
class Replayed:
    """A pass of replayed requests."""

    work: Work
    seconds: float
    cpu: Mapping[str, float]
    restart_seconds: float = 0.0


class Stand:
    """Running engines, and the passes over them."""

    def __init__(self, running: RunningSystem, run_dir: Path) -> None:
        assert running.plan is not None  # these engines were started from one
        self._plan, self._actor_group = running.plan, running.actor_group
        self._run_dir = run_dir
        config = running.prepared.config
        self._max_concurrent = config.num_concurrent_dialogues(running.prepared.placement.device)
        roles, context = running.open(config, RunStore(run_dir), Counters())
        self._play = context.player(roles)

    async def pipeline(self, plans: Sequence[DialoguePlan]) -> Played:
        """Plays the dialogues as a run does."""
        dialogues: list[Dialogue] = []

        async def one(plan: DialoguePlan) -> None:
            with suppress(RecordDropped):
                dialogues.append(await self._play(plan))

        playing = partial(run_bounded, plans, self._max_concurrent, one)
        _, seconds, cpu = await self._timed(playing)
        dropped = len(plans) - len(dialogues)
        return Played(dialogues, seconds, cpu, dropped, await self._of_each("record"))

    async def ceiling(self, recorded: Recorded) -> Replayed:
        """All requests at once, on all engines of both roles."""
        return Replayed(*await self._timed(partial(self._replay, recorded)))

    async def lock_step(self, recorded: Recorded) -> Replayed:
        """One turn of one role after the other, with engines that stay as they are."""

        async def in_phases() -> Work:
            return sum([await self._replay(one) for _, one in _by_phase(recorded)], Work())

        return Replayed(*await self._timed(in_phases))

    async def reload(self, recorded: Recorded) -> Replayed:
        """Lock-step in which the engines of a role are restarted before each of their turns."""
        await self._actor_group.supervisor.close()  # it would take the place of who is ended here
        work = Work()
        restarting = 0.0
        started = time.perf_counter()
        for role, requests in _by_phase(recorded):
            before = time.perf_counter()
            await self._restart(role)
            restarting += time.perf_counter() - before
            work += await self._replay(requests)
        # Processes come and go here, so their CPU seconds would not add up.
        return Replayed(work, time.perf_counter() - started, {}, restarting)

    async def _timed(
        self, work: Callable[[], Awaitable[_Done]]
    ) -> tuple[_Done, float, dict[str, float]]:
        """What comes of work that begins with empty caches, its seconds, and CPU seconds."""
        await self._of_each("reset")
        before = cpu_seconds(self._run_dir)
        started = time.perf_counter()
        done = await work()
        seconds = time.perf_counter() - started
        return done, seconds, used(before, cpu_seconds(self._run_dir))

    async def _replay(self, recorded: Recorded) -> Work:
        calls = [
            remote(self._actor_group.places[role][number].replay.remote(list(served)))
            for (role, number), served in recorded.items()
        ]
        return sum(await asyncio.gather(*calls), Work())

    async def _restart(self, role: str) -> None:
        engines = self._actor_group.places[role]
        await end_actors(engines)
        engines[:] = [spawn_engine(self._plan, role, number) for number in range(len(engines))]
        await asyncio.gather(*(remote(engine.start.remote()) for engine in engines))

    async def _of_each(self, method: str) -> dict[Engine, Any]:
        """What a method of every engine returns."""
        engines = {
            (role, number): engine
            for role in ROLES
            for number, engine in enumerate(self._actor_group.places[role])
        }
        calls = (remote(getattr(engine, method).remote()) for engine in engines.values())
        return dict(zip(engines, await asyncio.gather(*calls), strict=True))


def _by_phase(recorded: Recorded) -> Iterator[tuple[str, Recorded]]:
    """The requests of each phase and its role, in the order of a lock-step loop."""
    for phase in phases(chain.from_iterable(recorded.values())):
        requests = {
            engine: [one for one in served if place_of(one.request.request_id)[1] == phase]
            for engine, served in recorded.items()
            if engine[0] == phase.role
        }
        yield phase.role, requests
