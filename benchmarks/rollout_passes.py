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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stargate.actors.engines.spec import EngineStats
from stargate.actors.rpc.guarded import GuardedPool, GuardedWorkers
from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.spawn import ActorGroup, ActorPlan, spawn_engine, stop_actors
from stargate.actors.runtime.supervisor import Supervisor
from stargate.benchmarks.rollout_cpu import cpu_seconds, used
from stargate.benchmarks.rollout_engine import Served, StepFigures, Work, work_of
from stargate.benchmarks.rollout_figures import (
    QUESTIONER,
    ROLEPLAYER,
    Phase,
    phases,
    place_of,
)
from stargate.benchmarks.workload import Workload
from stargate.errors import RecordDropped
from stargate.protocols import Play
from stargate.rollout.deadline import TurnWatch
from stargate.rollout.dialogue import play
from stargate.rollout.slow_start import SlowStart
from stargate.types import Dialogue, DialoguePlan

# role -> per engine, what it served, in the order in which it came
Recorded = Mapping[str, Sequence[Sequence[Served]]]


@dataclass(frozen=True)
class Timed:
    """One pass: its seconds, and the CPU seconds of each process in them."""

    seconds: float
    cpu: Mapping[str, float]


@dataclass(frozen=True)
class Played(Timed):
    """The pipeline's pass: its dialogues and what the engines did for them."""

    dialogues: Sequence[Dialogue]
    num_dropped: int
    recorded: Recorded
    steps: Mapping[str, Sequence[StepFigures]]
    busy_shares: Mapping[str, float]
    num_calls: int

    @property
    def num_turns(self) -> int:
        return sum(len(dialogue.turns) for dialogue in self.dialogues)

    @property
    def work(self) -> Work:
        return work_of(one for role in self.recorded for one in self.served(role))

    def served(self, role: str) -> list[Served]:
        return [one for of_engine in self.recorded[role] for one in of_engine]


@dataclass(frozen=True)
class Replayed(Timed):
    """A pass of replayed requests."""

    work: Work
    restart_seconds: float = 0.0


class Stand:
    """Running engines, and the passes over them."""

    def __init__(
        self, workload: Workload, plan: ActorPlan, actor_group: ActorGroup, matcher: Any
    ) -> None:
        assert actor_group.supervisor is not None  # start_actors has set it
        self._plan = plan
        self._actor_group = actor_group
        self._supervisor = actor_group.supervisor
        self._max_concurrent = workload.config.rollout.max_concurrent_dialogues
        self._play = _player(workload, actor_group, actor_group.supervisor, matcher)

    async def pipeline(self, plans: Sequence[DialoguePlan]) -> Played:
        """Plays the dialogues as a run does."""
        await self._reset()
        slots = asyncio.Semaphore(self._max_concurrent)

        async def one(plan: DialoguePlan) -> Dialogue | None:
            async with slots:
                try:
                    return await self._play(plan)
                except RecordDropped:
                    return None

        busy, cpu = await self._busy(), await self._cpu()
        started = time.perf_counter()
        played = await asyncio.gather(*(one(plan) for plan in plans))
        seconds = time.perf_counter() - started
        cpu = used(cpu, await self._cpu())
        dialogues = [dialogue for dialogue in played if dialogue is not None]
        return Played(
            seconds=seconds,
            cpu=cpu,
            dialogues=dialogues,
            num_dropped=len(played) - len(dialogues),
            recorded=await self._of_each("served"),
            steps=await self._of_each("steps"),
            busy_shares={
                role: (after - busy[role]) / seconds / len(self._engines(role))
                for role, after in (await self._busy()).items()
            },
            num_calls=sum(sum(calls) for calls in (await self._of_each("num_calls")).values()),
        )

    async def ceiling(self, recorded: Recorded) -> Replayed:
        """All requests at once, on all engines of both roles."""
        await self._reset()
        cpu = await self._cpu()
        started = time.perf_counter()
        done = await asyncio.gather(
            *(self._replay(role, requests) for role, requests in recorded.items())
        )
        seconds = time.perf_counter() - started
        return Replayed(seconds, used(cpu, await self._cpu()), sum(done, Work()))

    async def lock_step(self, recorded: Recorded) -> Replayed:
        """One turn of one role after the other, with engines that stay as they are."""
        await self._reset()
        cpu = await self._cpu()
        work = Work()
        started = time.perf_counter()
        for phase in _all_phases(recorded):
            work += await self._replay(phase.role, _of_phase(recorded[phase.role], phase))
        seconds = time.perf_counter() - started
        return Replayed(seconds, used(cpu, await self._cpu()), work)

    async def reload(self, recorded: Recorded) -> Replayed:
        """Lock-step in which the engines of a role are restarted before each of their turns."""
        await self._supervisor.close()  # it would take the place of who is ended here
        work = Work()
        restarting = 0.0
        started = time.perf_counter()
        for phase in _all_phases(recorded):
            before = time.perf_counter()
            await self._restart(phase.role)
            restarting += time.perf_counter() - before
            work += await self._replay(phase.role, _of_phase(recorded[phase.role], phase))
        # Processes come and go here, so their CPU seconds would not add up.
        return Replayed(time.perf_counter() - started, {}, work, restarting)

    async def _replay(self, role: str, requests: Sequence[Sequence[Served]]) -> Work:
        calls = [
            remote(engine.replay.remote(list(of_engine)))
            for engine, of_engine in zip(self._engines(role), requests, strict=True)
        ]
        return sum(await asyncio.gather(*calls), Work())

    async def _restart(self, role: str) -> None:
        engines = self._engines(role)
        await stop_actors(ActorGroup(questioners=list(engines)))
        engines[:] = [spawn_engine(self._plan, role, number) for number in range(len(engines))]
        await asyncio.gather(*(remote(engine.start.remote()) for engine in engines))

    def _engines(self, role: str) -> list[Any]:
        return (
            self._actor_group.questioners if role == QUESTIONER else self._actor_group.roleplayers
        )

    async def _reset(self) -> None:
        await self._of_each("reset")

    async def _of_each(self, method: str) -> dict[str, list[Any]]:
        """What a method of every engine returns, by role."""
        return {
            role: await asyncio.gather(
                *(remote(getattr(engine, method).remote()) for engine in self._engines(role))
            )
            for role in (QUESTIONER, ROLEPLAYER)
        }

    async def _busy(self) -> dict[str, float]:
        stats: dict[str, list[EngineStats]] = await self._of_each("stats")
        return {role: sum(one.busy_seconds for one in of_role) for role, of_role in stats.items()}

    async def _cpu(self) -> dict[str, float]:
        return cpu_seconds(await self._of_each("process_id"))


def _player(
    workload: Workload, actor_group: ActorGroup, supervisor: Supervisor, matcher: Any
) -> Play:
    """What plays a dialogue, as launch/setup.py builds it: dialogue workers, or this process."""
    if actor_group.workers:
        return GuardedWorkers(actor_group.workers, supervisor)
    return partial(
        play,
        questioner=workload.questioner(
            GuardedPool("questioner", actor_group.questioners, supervisor)
        ),
        roleplay=workload.roleplayer(
            GuardedPool("roleplayer", actor_group.roleplayers, supervisor), matcher
        ),
        watch=TurnWatch(workload.config.rollout.turn_timeout_s),
        start=SlowStart(workload.config.num_first_dialogues),
    )


def _all_phases(recorded: Recorded) -> list[Phase]:
    return phases(one for of_role in recorded.values() for served in of_role for one in served)


def _of_phase(requests: Sequence[Sequence[Served]], phase: Phase) -> list[list[Served]]:
    return [
        [one for one in of_engine if place_of(one.request.request_id)[1] == phase]
        for of_engine in requests
    ]
