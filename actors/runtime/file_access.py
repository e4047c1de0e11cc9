"""How folders get between the driver and its actors: all on one machine, or on nodes of a cluster.

bring(folder, actor)      a folder that is here, as the actor sees it
collect(folder, actor)    where the actor may write what is to become `folder` here
shares(folder, actor)     whether it sees a folder itself, and may write into it while it works
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Spot:
    """Where one actor is hired, in terms of that place. `options` are Ray's, for its actor."""

    base_model_dir: str
    roleplayer_dir: str
    log_dir: Path
    cores: str | None
    threads: int
    options: Mapping[str, Any] = field(default_factory=dict)


class FileAccess(Protocol):
    """Actors are named as in logs: "questioner-0". Paths hold as long as the block lasts."""

    def bring(self, folder: str, actor: str) -> AbstractAsyncContextManager[str]:
        """A folder of the driver's, as the actor sees it. Raises EngineError, MachineError."""
        ...

    def collect(self, folder: Path, actor: str) -> AbstractAsyncContextManager[str]:
        """Where the actor writes a folder; when the block has ended well, `folder` is it."""
        ...

    async def shares(self, folder: Path, actor: str) -> bool:
        """Whether the actor sees a folder of the driver's under the same name."""
        ...


class SameFiles:
    """A FileAccess for actors that see the files of the driver."""

    @asynccontextmanager
    async def bring(self, folder: str, actor: str) -> AsyncIterator[str]:
        yield folder

    @asynccontextmanager
    async def collect(self, folder: Path, actor: str) -> AsyncIterator[str]:
        yield str(folder)

    async def shares(self, folder: Path, actor: str) -> bool:
        return True
