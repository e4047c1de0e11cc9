"""Puts a new actor in the place of a dead one, with what that one held; not for ever.

    a call ends in ActorDied -> replace -> the present actor answers: somebody else saw to it
                                        -> else: ended for good, hired anew from the same spec,
                                           started, given the current weights, put in its place
    watch: finds the dead that nobody calls, so that they are back before they are needed
    add    -> slots more: started, given the current weights, then known to all who ask
    retire -> a slot less: asked no more, ends what it has, belongs to nobody
    a ping without an answer: the actor hangs, and is ended as if it had died (actor_slots.py)
    too many restarts -> `failure`: every call of any role ends in it, and the run stops
                         (clients.py: what the run calls)

A slot is one actor's place in a run, or that of all trainer ranks: those live and die together,
because the others hang in a collective once one is gone. The actors' lists are the only record of
who stands where; a new actor appears there when it is ready, never before.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from ray.exceptions import RayActorError

from stargate.actors.rpc.remote import remote, within
from stargate.actors.rpc.replica_pool import EnginePool
from stargate.actors.runtime.actor_slots import ActorSlot, HeldWeights, RunFailure
from stargate.actors.runtime.file_transfer import FileAccess, SameFiles
from stargate.errors import EngineError, MachineError, StargateError, one_line
from stargate.monitoring.progress import logged
from stargate.records.counters import Counters

_log = logging.getLogger(__name__)

# Seconds between looks at everybody: a dead actor is mostly found by a call that it does not
# answer.
_WATCH_SECONDS = 5.0
# Seconds between two tries to start the same actor.
_RETRY_SECONDS = 5.0
# Seconds that an actor may take to start, or to take weights: far more than the largest models do.
START_SECONDS = 3600.0
# Characters of a cause that the screen shows; the log has all of it.
_SHOWN_CAUSE = 160


class Supervisor:
    """Keeps every slot of a run's actors filled. `dismiss` ends an actor at once, dead ones too."""

    def __init__(
        self,
        slots: Sequence[ActorSlot],
        weights: HeldWeights,
        max_restarts: int,
        dismiss: Callable[[Any], None],
        say: Callable[[str], None],
        introduce: Callable[[ActorSlot], Awaitable[None]] | None = None,
        file_access: FileAccess | None = None,
    ) -> None:
        """`introduce` tells a slot's new actors to those that hold handles of their own.

        `file_access` brings weights to where an actor is; None: it sees the driver's files.
        """
        self.weights = weights
        self.counters = Counters()
        self.failure = RunFailure()
        self._slots = list(slots)
        self._pools: dict[str, list[EnginePool]] = {}  # those that follow who joins and leaves
        self._max_restarts = max_restarts
        self._dismiss = dismiss
        self._tell = logged(say, __name__)
        self._introduce = introduce or _tell_nobody
        self.file_access = file_access or SameFiles()
        # While an actor of a role may be started: not at any time where all share one GPU.
        self.room: Callable[[str], contextlib.AbstractAsyncContextManager[None]] = _always
        self._watching: asyncio.Task[None] | None = None

    def begin(self, counters: Counters) -> None:
        """From here on everything counts for another run, which has pools of its own."""
        self.counters = counters
        self._pools.clear()
        for slot in self._slots:
            slot.num_restarts = 0

    async def replace(self, role: str, number: int, error: Exception) -> Any:
        """The actor that stands at a place, alive: the present one if it answers, else a new one.

        `error` is what a call to it ended in. Raises EngineError when it died too often, or what
        else kept a new one from starting; then `failure` is set. Cancelling a caller does not
        disturb the restart.
        """
        slot = self._slot(role, number)
        if slot is not None:
            await self._renewed(slot, error)
        if slot is None or slot not in self._slots:
            raise EngineError(f"{role}-{number} has left: {error}")
        return slot.places[number]

    async def replace_hung(self, role: str, number: int, actor: Any, error: EngineError) -> Any:
        """As `replace`, for an actor that may still answer but no longer does its work."""
        slot = self._slot(role, number)
        if slot is not None and actor in slot.actors:
            slot.hung = error
        return await self.replace(role, number, error)

    def _slot(self, role: str, number: int) -> ActorSlot | None:
        return next((s for s in self._slots if s.role == role and number in s.numbers), None)

    def follow(self, role: str, pool: EnginePool) -> None:
        """Tells a pool who joins and leaves, until the next `begin`."""
        self._pools.setdefault(role, []).append(pool)

    async def add(self, slots: Sequence[ActorSlot]) -> None:
        """New slots, started side by side; each is then given work, in the order of numbers.

        Raises EngineError or MachineError for the first that can't start; those after it are ended.
        """
        self.failure.check()
        began = time.perf_counter()
        starting = [asyncio.create_task(self._started(slot)) for slot in slots]
        num_joined = 0
        try:
            for slot, task in zip(slots, starting, strict=True):
                actors = await task
                await self._give_weights(slot, actors)
                self._join(slot, actors, time.perf_counter() - began)
                num_joined += 1
                await self._introduce(slot)
        finally:
            for task in starting[num_joined:]:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            for task in starting[num_joined:]:
                if not task.cancelled() and task.exception() is None:
                    for actor in task.result():
                        self._dismiss(actor)

    def _join(self, slot: ActorSlot, actors: Sequence[Any], seconds: float) -> None:
        """Nothing is awaited between the last look at the weights and this: a push that goes on
        finds the new ones in their place, and pushes into them too.
        """
        slot.put(actors)
        self._slots.append(slot)
        for pool in self._pools.get(slot.role, ()):
            for actor in actors:
                pool.join(actor)
        self.counters.joined[slot.role] += 1
        self._tell(f"{slot.name} has joined after {seconds:.1f} s{self._version(slot)}")

    async def retire(self, role: str, leaving: list[Any]) -> str:
        """Takes out the last actor of a role; its name, when it has ended what it had to do.

        It is moved from its place to `leaving`, for the caller to end. At least one must stay.
        """
        slots = [slot for slot in self._slots if slot.role == role]
        if len(slots) < 2:
            raise EngineError(f"the last {role} can't leave")
        slot = max(slots, key=lambda slot: max(slot.numbers))
        while slot.renewing is not None or self.weights.are_coming:
            if slot.renewing is not None:
                await asyncio.wait({slot.renewing})
            await self.weights.settled()
            self.failure.check()
        self._slots.remove(slot)
        leaving.append(slot.places.pop())
        drained = [pool.leave() for pool in self._pools.get(role, ())]
        self.counters.left[role] += 1
        self._tell(f"{slot.name} gets no new requests and ends those that it has")
        await asyncio.gather(*drained, self._introduce(slot))
        return slot.name

    def watch(self) -> None:
        """Looks after everybody from now on, until `close`."""
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while self.failure.error is None:
            await asyncio.sleep(_WATCH_SECONDS)
            for slot in self._slots:
                self._look_after(slot)  # not awaited: one that hangs must not hide the others

    async def close(self) -> None:
        """Ends watching, and restarts that are under way: all actors are about to be ended."""
        self.failure.set(self.failure.error or EngineError("the run's actors are being ended"))
        tasks = [slot.renewing for slot in self._slots if slot.renewing is not None]
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _renewed(self, slot: ActorSlot, error: Exception) -> None:
        """Returns when a slot is filled by actors that answer, asked after `error` was seen."""
        self.failure.check()
        before, joined = slot.actors, slot.renewing is not None
        await asyncio.shield(self._look_after(slot, error))
        # That look may have been just before the death.
        if joined and slot in self._slots and slot.actors == before:
            self.failure.check()
            await asyncio.shield(self._look_after(slot, error))

    def _look_after(self, slot: ActorSlot, error: Exception | None = None) -> "asyncio.Task[None]":
        """The one task that asks a slot's actors, and fills it anew if need be."""
        if slot.renewing is None:
            slot.renewing = asyncio.create_task(self._renew(slot, error))
            slot.renewing.add_done_callback(_note)
        return slot.renewing

    async def _renew(self, slot: ActorSlot, error: Exception | None) -> None:
        try:
            answer = await slot.problem()
            if answer is None:
                return
            started = time.perf_counter()
            while True:
                self._count(slot, error or answer)
                for actor in slot.actors:
                    self._dismiss(actor)
                try:
                    async with self.room(slot.role):
                        await self._fill(slot)
                    break
                except (EngineError, MachineError) as problem:
                    error = problem
                    await asyncio.sleep(_RETRY_SECONDS)  # memory may only be late in coming
            seconds = time.perf_counter() - started
            self.counters.restarted(slot.role, seconds)
            self._tell(f"{slot.name} is back after {seconds:.1f} s{self._version(slot)}")
        except StargateError as problem:
            self.failure.set(problem)
            raise
        finally:
            slot.renewing = None

    def _version(self, slot: ActorSlot) -> str:
        return f", with weights version {self.weights.current[1]}" * slot.takes_weights

    def _count(self, slot: ActorSlot, error: Exception) -> None:
        """Counts a restart. Raises EngineError when there were too many."""
        _log.warning("%s died: %s", slot.name, one_line(error))
        cause = _in_short(error)
        if slot.num_restarts >= self._max_restarts:
            raise EngineError(
                f"{slot.name} died once more than schedule.max_restarts = {self._max_restarts} "
                f"allows: {cause}"
            )
        slot.num_restarts += 1
        self._tell(
            f"{slot.name} died: {cause}; starting it again "
            f"(restart {slot.num_restarts} of {self._max_restarts})"
        )

    async def _fill(self, slot: ActorSlot) -> None:
        """Hires new actors and puts them in their place once they can work, or else ends them."""
        actors = await self._started(slot)
        await self._give_weights(slot, actors)
        slot.put(actors)
        await within(
            self._introduce(slot), START_SECONDS, f"{slot.name}: the others do not hear of it"
        )

    async def _started(self, slot: ActorSlot) -> list[Any]:
        """New actors that hold the weights they begin with; ended if they can't start."""
        actors = await slot.hire()
        async with self._or_dismissed(actors):
            starting = asyncio.gather(*(remote(actor.start.remote()) for actor in actors))
            late = f"{slot.name}: not started after {START_SECONDS:g} s"
            await within(starting, START_SECONDS, late)
        return actors

    async def _give_weights(self, slot: ActorSlot, actors: Sequence[Any]) -> None:
        """Returns when actors that have just started hold what is current at this very moment: a
        push to the others may end meanwhile. They are ended if they don't take it.
        """
        held = self.weights.at_start
        async with self._or_dismissed(actors):
            while slot.takes_weights and held != self.weights.current:
                held = self.weights.current
                pairs = zip(slot.numbers, actors, strict=True)
                await asyncio.gather(*(self._load(f"{slot.role}-{n}", a, *held) for n, a in pairs))

    @contextlib.asynccontextmanager
    async def _or_dismissed(self, actors: Sequence[Any]) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            for actor in actors:
                self._dismiss(actor)
            raise

    async def _load(self, name: str, actor: Any, model_dir: str, version: int) -> None:
        async with self.file_access.bring(model_dir, name) as folder:
            late = f"{name}: weights version {version} not loaded after {START_SECONDS:g} s"
            await within(remote(actor.load_weights.remote(folder, version)), START_SECONDS, late)


def _always(role: str) -> contextlib.AbstractAsyncContextManager[None]:
    """There is room for an actor of any role."""
    return contextlib.nullcontext()


async def _tell_nobody(slot: ActorSlot) -> None:
    """Nobody holds handles of their own."""


def _note(task: "asyncio.Task[None]") -> None:
    """Nobody may await a restart. A StargateError then stands in `failure`; others are defects."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, StargateError):
        _log.error("a restart failed", exc_info=error)


def _in_short(error: Exception) -> str:
    """A cause as the screen shows it. Ray's own texts are long and say no more than this."""
    if isinstance(error.__cause__, RayActorError):
        return "its process is gone"
    text = one_line(error)
    return text if len(text) <= _SHOWN_CAUSE else f"{text[:_SHOWN_CAUSE]}..."
