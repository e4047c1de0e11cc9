"""Who stands where in a run's actors, which weights they must hold, and why the run must stop.

supervisor.py fills slots again when an actor died, adds some and takes some away.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stargate.actors.rpc.remote import ActorHangs, remote, within
from stargate.errors import EngineError, StargateError

# The role of dialogue workers, as their slots are called.
WORKER = "dialogue-worker"
# Seconds that an actor's event loop has to answer one ping: what takes long runs beside it.
_PING_SECONDS = 5.0
# Pings without an answer, one after the other, after which an actor hangs. One alone proves
# nothing: the driver itself may have stood still (Ctrl-Z, a full machine) while the time ran out.
_MAX_UNANSWERED = 6


class HeldWeights:
    """Which weights the Questioner's engines must hold: what the last complete push gave them."""

    def __init__(self, model_dir: str) -> None:
        """`model_dir` is m_0, which engines start with."""
        self.at_start = self.current = (model_dir, 0)
        self._coming: int | None = None
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def versions(self) -> frozenset[int]:
        """Versions that a text may be of at this moment: during a push there are two."""
        coming = () if self._coming is None else (self._coming,)
        return frozenset((self.current[1], *coming))

    @contextlib.contextmanager
    def pushing(self, model_dir: str, version: int) -> Iterator[None]:
        """While new weights are on their way. They count as held once the block has ended well."""
        self._coming = version
        self._settled.clear()
        try:
            yield
            self.current = (model_dir, version)
        finally:
            self._coming = None
            self._settled.set()

    @property
    def are_coming(self) -> bool:
        """Whether a push is under way."""
        return self._coming is not None

    async def settled(self) -> None:
        """Returns when no push is under way."""
        await self._settled.wait()


class RunFailure:
    """Why a run must stop, once it must: then every call of any role ends in it."""

    def __init__(self) -> None:
        self.error: StargateError | None = None
        self._limits: set[asyncio.Timeout] = set()  # of what ends once there is an error

    def set(self, error: StargateError) -> None:
        self.error = error
        limits, self._limits = self._limits, set()
        for limit in limits:
            limit.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raises the error if there is one."""
        if self.error is not None:
            raise self.error

    @contextlib.asynccontextmanager
    async def ends(self) -> AsyncIterator[None]:
        """The block ends in the error as soon as there is one, whatever it waits for."""
        self.check()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if limit.expired():
                self.check()
            raise


@dataclass(eq=False)
class ActorSlot:
    """The place of one actor in a run, or that of all ranks of the trainer.

    `places` is the run's list of the role, `numbers` are the slot's places in it. `hire` makes
    actors that are not started; `check` asks one whether it lives, and is answered within seconds
    whatever the actor computes. `sleep` is the clock.
    """

    role: str
    places: list[Any]
    numbers: Sequence[int]
    hire: Callable[[], Awaitable[list[Any]]]
    check: Callable[[Any], Awaitable[object]]
    num_restarts: int = 0
    hung: EngineError | None = None  # what one of them did that lives, and does not do its work
    renewing: "asyncio.Task[None] | None" = None
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    @property
    def name(self) -> str:
        """As in the names of log files; the trainer's ranks have one slot."""
        return self.role if len(self.numbers) > 1 else f"{self.role}-{self.numbers[0]}"

    @property
    def takes_weights(self) -> bool:
        """Whether its actors hold what is trained."""
        return self.role == "questioner"

    @property
    def actors(self) -> list[Any]:
        return [self.places[number] for number in self.numbers]

    async def problem(self) -> EngineError | None:
        """What its actors answer when they are asked whether they live; None if they do.

        Returns in time, whether they answer or not.
        """
        if self.hung is not None:
            return self.hung
        calls = [self._answer(n, a) for n, a in zip(self.numbers, self.actors, strict=True)]
        found: EngineError | None = None
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, EngineError):
                found = found or answer
            elif isinstance(answer, BaseException):
                raise answer
        return found

    async def _answer(self, number: int, actor: Any) -> None:
        """Returns when an actor has answered one of several pings. Raises ActorHangs if none."""
        for _ in range(_MAX_UNANSWERED):
            with contextlib.suppress(ActorHangs):
                await within(remote(self.check(actor)), _PING_SECONDS, "", self.sleep)
                return
        raise ActorHangs(
            f"{self.role}-{number} hangs: it is there, but answers none of {_MAX_UNANSWERED} pings "
            f"within {_PING_SECONDS:g} s each"
        )

    def put(self, actors: Sequence[Any]) -> None:
        """New actors take the slot. A new place must be the next one of its role."""
        self.hung = None
        for number, actor in zip(self.numbers, actors, strict=True):
            if number == len(self.places):
                self.places.append(actor)
            else:
                self.places[number] = actor
