"""Who has the GPU when all actors share one (`cluster.strategy: colocated`). Pure, but for waiting.

    phase    questioner    roleplayer    scorer       in it
    play     awake         awake         asleep       dialogues, responses
    score    asleep (1)    asleep (1)    awake        gold log-probs
    train    asleep (2)    asleep (1)    asleep       the trainer, which holds nothing between
    push     as it is      as it is      asleep       new weights: taking them wakes an engine

Asleep at level 1, an engine's weights lie in the host's memory and its KV cache is given up; at
level 2 its weights are given up too, because new ones come. A scorer's weights go to the host.

A call says which phase it needs. Calls of the present phase start at once; the others wait until
nothing of it runs any more, then everybody is sent to bed or woken, first those who must sleep.
A phase is never cut short: a wave of dialogues is played to its end before it is scored.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class GpuPhase(StrEnum):
    """What the GPU is used for."""

    PLAY = "play"
    SCORE = "score"
    TRAIN = "train"
    PUSH = "push"


# How deep each role sleeps in a phase, 0 is awake. Who is not named stays as it is.
_LEVELS: Mapping[GpuPhase, Mapping[str, int]] = {
    GpuPhase.PLAY: {"questioner": 0, "roleplayer": 0, "scorer": 1},
    GpuPhase.SCORE: {"questioner": 1, "roleplayer": 1, "scorer": 0},
    GpuPhase.TRAIN: {"questioner": 2, "roleplayer": 1, "scorer": 1},
    GpuPhase.PUSH: {"scorer": 1},
}
# In which phases a role may be started: then there is room for it. A trainer's start takes none.
STARTS: Mapping[str, tuple[GpuPhase, ...]] = {
    "questioner": (GpuPhase.PLAY, GpuPhase.PUSH),
    "roleplayer": (GpuPhase.PLAY,),
    "scorer": (GpuPhase.SCORE,),
}


@dataclass(frozen=True, slots=True)
class SleepOrder:
    """All actors of a role go to sleep at a level (1 or 2), or wake up (0)."""

    role: str
    level: int


@dataclass(frozen=True, slots=True)
class Start:
    """All actors of a role are started, one after the other: each measures the memory it gets."""

    role: str


def orders(asleep: Mapping[str, int], phase: GpuPhase) -> list[SleepOrder]:
    """What must happen before a phase can begin; `asleep` is the level of every role that there is.

    One that sleeps already stays so at its level: vLLM would have to wake it to send it deeper.
    """
    levels = {role: level for role, level in _LEVELS[phase].items() if role in asleep}
    to_bed = [SleepOrder(r, level) for r, level in levels.items() if level and not asleep[r]]
    up = [SleepOrder(r, 0) for r, level in levels.items() if not level and asleep[r]]
    return to_bed + up


def opening(roles: Sequence[str]) -> list[Start | SleepOrder]:
    """How actors are started: engines beside each other, as they play; then they make room."""
    steps: list[Start | SleepOrder] = []
    engines = [role for role in ("questioner", "roleplayer") if role in roles]
    steps += [Start(role) for role in engines]
    steps += [SleepOrder(role, 1) for role in engines]
    if "scorer" in roles:
        steps += [Start("scorer"), SleepOrder("scorer", 1)]
    steps += [Start(role) for role in roles if role not in ("questioner", "roleplayer", "scorer")]
    return steps


@dataclass
class _Waiting:
    phases: tuple[GpuPhase, ...]
    admitted: "asyncio.Future[None]"


class GpuPhases:
    """Lets calls in when it is their phase. `carry_out` sends a role to bed or wakes it."""

    def __init__(
        self, asleep: Mapping[str, int], carry_out: Callable[[SleepOrder], Awaitable[None]]
    ) -> None:
        """`asleep` is how deep every role sleeps now."""
        self._asleep = dict(asleep)
        self._carry_out = carry_out
        self._shift: GpuPhase | None = None
        self._working = 0
        self._waiting: list[_Waiting] = []
        self._changing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def on(self, *phases: GpuPhase) -> AsyncIterator[None]:
        """For work of these phases: in the present one if it is among them, else in the first.

        Raises what kept the phase from beginning.
        """
        await self._enter(phases)
        try:
            yield
        finally:
            self._working -= 1
            self._change_if_idle()

    def during(
        self, phase: GpuPhase, call: Callable[_P, Awaitable[_T]]
    ) -> Callable[_P, Coroutine[Any, Any, _T]]:
        """A call that waits for its phase."""

        async def in_turn(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            async with self.on(phase):
                result = await call(*args, **kwargs)
            return result

        return in_turn

    def woken(self, role: str) -> None:
        """Notes that a role was woken by its work: engines, by new weights."""
        if role in self._asleep:
            self._asleep[role] = 0

    async def _enter(self, phases: tuple[GpuPhase, ...]) -> None:
        if self._changing is None and self._shift in phases:
            self._working += 1
            return
        waiting = _Waiting(phases, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._change_if_idle()
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            done = waiting.admitted
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif done.done() and not done.cancelled() and done.exception() is None:
                self._working -= 1  # let in at the very moment in which it gave up
                self._change_if_idle()
            raise

    def _change_if_idle(self) -> None:
        if self._waiting and not self._working and self._changing is None:
            self._changing = asyncio.create_task(self._change(self._waiting[0].phases[0]))

    async def _change(self, phase: GpuPhase) -> None:
        """Begins a phase and lets in all who waited for it; or fails everybody who waits."""
        problem: BaseException | None = None
        try:
            self._shift = None
            for order in orders(self._asleep, phase):
                await self._carry_out(order)
                self._asleep[order.role] = order.level
            self._shift = phase
        except Exception as error:  # whoever waits must hear it; nobody may wait for ever
            problem = error
        finally:
            self._changing = None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one.admitted.done():
                continue
            if problem is not None:
                one.admitted.set_exception(problem)
            elif phase in one.phases:
                self._working += 1
                one.admitted.set_result(None)
            else:
                self._waiting.append(one)
        self._change_if_idle()

    async def close(self) -> None:
        """Ends a change that is under way: the actors is about to be ended."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait({self._changing})
