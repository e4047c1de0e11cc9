"""One GPU for all actors (`cluster.strategy: colocated`): who has it when, and whether all fit.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, ParamSpec, TypeVar

from stargate.config.run import Device, RunConfig
from stargate.errors import MachineError
from stargate.resources.memory import PROCESS_GIB

# The share of a GPU that engines may have where the size of the GPU is not known.
MAX_SHARE = 0.95
# Ray counts shares of a GPU in these parts: sums of 0.1 come out even.
GPU_PARTS = 10_000

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


def orders(asleep: Mapping[str, int], phase: GpuPhase) -> dict[str, int]:
    """Roles whose actors must go to sleep at a level (1 or 2) or wake up (0) before a phase can
    begin, in this order; `asleep` is the level of every role that there is.

    One that sleeps already stays so at its level: vLLM would have to wake it to send it deeper.
    """
    levels = {role: level for role, level in _LEVELS[phase].items() if role in asleep}
    to_bed = {role: level for role, level in levels.items() if level and not asleep[role]}
    return to_bed | {role: 0 for role, level in levels.items() if not level and asleep[role]}


class GpuPhases:
    """Lets calls in when it is their phase. `carry_out` sends a role to bed or wakes it."""

    def __init__(
        self, asleep: Mapping[str, int], carry_out: Callable[[str, int], Awaitable[None]]
    ) -> None:
        """`asleep` is how deep every role sleeps now."""
        self._asleep = dict(asleep)
        self._carry_out = carry_out
        self._phase: GpuPhase | None = None
        self._working = 0
        self._waiting: dict[asyncio.Future[None], tuple[GpuPhase, ...]] = {}  # until let in
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
        if self._changing is None and self._phase in phases:
            self._working += 1
            return
        admitted = asyncio.get_running_loop().create_future()
        self._waiting[admitted] = phases
        self._change_if_idle()
        try:
            await admitted
        except asyncio.CancelledError:
            waited = self._waiting.pop(admitted, None) is not None
            if not (waited or admitted.cancelled()) and admitted.exception() is None:
                self._working -= 1  # let in at the very moment in which it gave up
                self._change_if_idle()
            raise

    def _change_if_idle(self) -> None:
        if self._waiting and not self._working and self._changing is None:
            self._changing = asyncio.create_task(
                self._change(next(iter(self._waiting.values()))[0])
            )

    async def _change(self, phase: GpuPhase) -> None:
        """Begins a phase and lets in all who waited for it; or fails everybody who waits."""
        problem: BaseException | None = None
        try:
            self._phase = None
            for role, level in orders(self._asleep, phase).items():
                await self._carry_out(role, level)
                self._asleep[role] = level
            self._phase = phase
        except Exception as error:  # whoever waits must hear it; nobody may wait for ever
            problem = error
        finally:
            self._changing = None
        waiting, self._waiting = self._waiting, {}
        for admitted, phases in waiting.items():
            if admitted.done():
                continue
            if problem is not None:
                admitted.set_exception(problem)
            elif phase in phases:
                self._working += 1
                admitted.set_result(None)
            else:
                self._waiting[admitted] = phases
        self._change_if_idle()

    async def close(self) -> None:
        """Ends a change that is under way: all actors are about to be ended."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait({self._changing})


def is_colocated(config: RunConfig) -> bool:
    """Whether the config asks for one GPU for all."""
    return config.cluster.strategy == "colocated"


def require_gpu(config: RunConfig, device: Device) -> None:
    """Raises MachineError for a colocated run on CPUs: vLLM can't sleep there."""
    if is_colocated(config) and device == "cpu":
        raise MachineError(
            "cluster.strategy is 'colocated': its actors take turns on one GPU by vLLM's sleep "
            "mode, and this run is on CPUs: set cluster.strategy=packed"
        )


def gpu_share(config: RunConfig, *, training: bool = True) -> float:
    """What each actor asks Ray for. Worked example: 4 actors 0.25, 3 actors 0.3333.

    Ray gives shares of one GPU as long as one has room for them; it does not watch the memory.
    """
    return GPU_PARTS // _num_actors(config, training) / GPU_PARTS


def engine_share(config: RunConfig) -> float:
    """The part of the GPU's memory that all engines have together when they are awake."""
    engines = config.engines.values()
    return sum(engine.num_engines * engine.gpu_memory_utilization for engine in engines)


def check_engines(config: RunConfig, gpu_gib: float | None, *, training: bool = True) -> None:
    """Raises MachineError when the engines, all awake, leave no room for the others' contexts.

    `gpu_gib` is the GPU's memory; None: it is not known yet.
    """
    share = engine_share(config)
    others_gib = _num_others(config, training) * PROCESS_GIB
    most = MAX_SHARE if gpu_gib is None else 1.0 - others_gib / gpu_gib
    if share > most + 1e-9:
        raise MachineError(
            f"cluster.strategy is 'colocated': the engines take {share:.0%} of the GPU's memory "
            f"when they are awake, {max(0.0, most):.0%} can be had: lower "
            "questioner.engine.gpu_memory_utilization or roleplayer.engine.gpu_memory_utilization"
        )


def _num_actors(config: RunConfig, training: bool) -> int:
    """Processes that use the GPU."""
    num_engines = sum(engine.num_engines for engine in config.engines.values())
    return num_engines + _num_others(config, training)


def _num_others(config: RunConfig, training: bool) -> int:
    """Processes that sleep, or hold nothing, while the engines are awake."""
    return config.scorer.num_scorers + (config.trainer.num_ranks if training else 0)
