"""A supervisor and its actor_group, with fakes in the place of Ray's actors."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from stargate.actors.rpc.batched_calls import CallBatch, Delivery
from stargate.actors.rpc.remote import ActorDied
from stargate.actors.runtime.actor_slots import ActorSlot, HeldWeights
from stargate.actors.runtime.supervisor import Supervisor
from stargate.actors.runtime.weight_pusher import WeightPusher
from stargate.records.counters import Counters
from stargate.types import (
    GenerateRequest,
    Generation,
    PushResult,
    ScoreRequest,
    ScoreResult,
    StopReason,
)


class FakeActor:
    """Any of our actors. `dies_in` names the method whose next call is its end."""

    def __init__(self, name: str, dies_in: str | None = None) -> None:
        self.name = name
        self.calls: list[tuple[Any, ...]] = []
        self.alive = True
        self.dies_in = dies_in
        self.version = 0
        self.hold: asyncio.Event | None = None  # what `start` and `load_weights` wait for
        self.awake = asyncio.Event()  # not set: stopped, as by SIGSTOP; no call ever ends
        self.awake.set()

    def __getattr__(self, method: str) -> Any:
        if method.startswith(("do_", "__")):
            raise AttributeError(method)
        return SimpleNamespace(remote=partial(self._call, method))

    async def _call(self, method: str, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        if method == self.dies_in:
            self.alive = False
        self.calls.append((method, *arguments))
        await self.awake.wait()
        if self.hold is not None and method in ("start", "load_weights"):
            await self.hold.wait()
        if not self.alive:
            raise ActorDied(f"{self.name} is gone")
        return await getattr(self, f"do_{method}", self.do_nothing)(*arguments)

    async def do_nothing(self, *arguments: Any) -> None:
        pass

    async def do_load_weights(self, model_dir: str, version: int) -> dict[str, float]:
        self.version = version
        return {"update": 1.0}

    async def do_reported_version(self) -> int:
        return self.version

    async def do_score(self, requests: list[ScoreRequest]) -> list[ScoreResult]:
        return [ScoreResult(request.key, ((-1.0,),)) for request in requests]

    async def do_exchange(self, batch: CallBatch[GenerateRequest]) -> Delivery[Generation]:
        text = Generation(self.name, (1,), StopReason.STOP, self.version, 1)
        return Delivery([(key, text) for key, _ in batch.requests])

    async def do_progress(self) -> Any:
        return SimpleNamespace(number=0, total_steps=0, notes=())

    @property
    def methods(self) -> list[str]:
        return [call[0] for call in self.calls]


async def settle() -> None:
    """Lets everything go on that needs no time: fakes answer within a turn of the loop or two."""
    for _ in range(100):
        await asyncio.sleep(0)


class Clock:
    """`sleep` ends when the time that was asked for has been moved on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, woken))
        await woken

    async def move(self, seconds: float) -> None:
        await settle()
        self.now += seconds
        for until, woken in self._sleepers:
            if until <= self.now and not woken.done():
                woken.set_result(None)
        await settle()


def ping(actor: Any) -> Awaitable[object]:
    call: Awaitable[object] = actor.progress.remote()
    return call


@dataclass
class ActorGroup:
    """A supervisor of one role with fakes. `prepare` is told each new actor before it starts."""

    role: str = "questioner"
    count: int = 1
    together: bool = False
    max_restarts: int = 3
    prepare: Callable[[FakeActor], None] = lambda actor: None
    said: list[str] = field(default_factory=list)
    dismissed: list[str] = field(default_factory=list)
    hired: list[FakeActor] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.actors = [FakeActor(f"{self.role}-{n}") for n in range(self.count)]
        slots = [range(self.count)] if self.together else [(n,) for n in range(self.count)]
        self.supervisor = Supervisor(
            [self.slot(numbers) for numbers in slots],
            HeldWeights("base"),
            self.max_restarts,
            self._dismiss,
            self.said.append,
        )
        self.counters = Counters()
        self.supervisor.begin(self.counters)

    def _dismiss(self, actor: FakeActor) -> None:
        self.dismissed.append(actor.name)
        if not actor.awake.is_set():  # who waits for a stopped one hears now of its death
            actor.alive = False
            actor.awake.set()

    def slot(self, numbers: Sequence[int]) -> ActorSlot:
        hire = partial(self.hire, numbers)
        return ActorSlot(self.role, self.actors, numbers, hire, ping, sleep=self.clock.sleep)

    async def add(self, *numbers: int) -> None:
        """More actors of the role join."""
        await self.supervisor.add([self.slot((number,)) for number in numbers])

    async def replace(self, number: int = 0) -> Any:
        """As who was told that an actor is gone."""
        return await self.supervisor.replace(self.role, number, GONE)

    async def push(self, model_dir: str, version: int) -> PushResult:
        """New weights for all."""
        return await WeightPusher(self.actors, self.supervisor)(model_dir, version)

    async def hire(self, numbers: Any) -> list[FakeActor]:
        new = [FakeActor(f"{self.role}-{n}'") for n in numbers]
        for actor in new:
            self.prepare(actor)
        self.hired += new
        return new


GONE = ActorDied("gone")
