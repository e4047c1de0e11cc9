"""Who stands where in a run's actors, and which weights the Questioner's engines must hold.

supervisor.py fills slots again when an actor died, adds some and takes some away.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# The role of dialogue workers, as their slots are called.
WORKER = "dialogue-worker"


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


# Makes actors that are not started.
Hire = Callable[[], list[Any] | Awaitable[list[Any]]]


@dataclass(eq=False)
class ActorSlot:
    """One actor's place in the actors, or that of all ranks of the trainer.

    `places` is the actors' list of the role, `numbers` are the slot's places in it. `hire` makes
    actors that are not started; `check` asks one whether it lives, and raises EngineError if not.
    """

    role: str
    places: list[Any]
    numbers: Sequence[int]
    hire: Hire
    check: Callable[[Any], Awaitable[object]]
    takes_weights: bool = False
    num_restarts: int = 0
    renewing: "asyncio.Task[None] | None" = None

    @property
    def name(self) -> str:
        """As in the names of log files; the trainer's ranks have one slot."""
        return self.role if len(self.numbers) > 1 else f"{self.role}-{self.numbers[0]}"

    @property
    def actors(self) -> list[Any]:
        return [self.places[number] for number in self.numbers]

    async def hired(self) -> list[Any]:
        """New actors, not started. On a cluster, hiring first sees to their nodes."""
        hiring = self.hire()
        return hiring if isinstance(hiring, list) else await hiring

    def put(self, actors: Sequence[Any]) -> None:
        """A new place must be the next one of its role."""
        for number, actor in zip(self.numbers, actors, strict=True):
            if number == len(self.places):
                self.places.append(actor)
            else:
                self.places[number] = actor
