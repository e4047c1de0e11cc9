"""How folders get between the driver and its actors: all on one machine, or on nodes of a cluster.

    FileAccess           what asks for a folder: SameFiles on one machine, else Cluster

    lend(folder, node)   to a node that does not see the driver's files: driver reads a chunk ->
                         Ray's object store -> the node's agent -> /dev/shm
                         once per node and folder, however many engines there ask for it; removed
                         when the last of them is done
    fetch(node, folder)  the other way: what the trainer saved there -> the run's models folder

A few chunks are under way at a time, so that weights of any size pass through a small object store.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.node_agent import file_sizes
from stargate.errors import DataError
from stargate.records.files import disk_errors, sync, whole_folder, write_at

# Bytes of one chunk, and how many are under way: together a part of the smallest object store.
CHUNK_BYTES = 16 << 20
_WINDOW = 3
# Seconds in which nodes may join one reading of a folder.
_GATHER_SECONDS = 0.05


class FileAccess(Protocol):
    """Actors are named as in logs: "questioner-0". Paths hold as long as the block lasts."""

    def bring(self, folder: str, actor: str) -> contextlib.AbstractAsyncContextManager[str]:
        """A folder of the driver's, as the actor sees it. Raises EngineError, MachineError."""
        ...

    def collect(self, folder: Path, actor: str) -> contextlib.AbstractAsyncContextManager[str]:
        """Where the actor writes a folder; when the block has ended well, `folder` is it."""
        ...

    async def shares(self, folder: Path, actor: str) -> bool:
        """Whether the actor sees a folder of the driver's under the same name."""
        ...


class SameFiles:
    """A FileAccess for actors that see the files of the driver."""

    @contextlib.asynccontextmanager
    async def bring(self, folder: str, actor: str) -> AsyncIterator[str]:
        yield folder

    @contextlib.asynccontextmanager
    async def collect(self, folder: Path, actor: str) -> AsyncIterator[str]:
        yield str(folder)

    async def shares(self, folder: Path, actor: str) -> bool:
        return True


@dataclass
class _Loan:
    """A folder that a node has for as long as somebody there uses it.

    `sending` ends with what became of it on each of the nodes that are sent it.
    """

    sending: "asyncio.Task[dict[str, str | Exception]]"
    num_users: int = 0


@dataclass
class FileTransfer:
    """`agents`: the handle of each node's agent. `put` puts an object into Ray's store.

    `say` tells what has arrived.
    """

    agents: Mapping[str, Any]
    put: Callable[[Any], Any]
    say: Callable[[str], None] = lambda text: None
    chunk_bytes: int = CHUNK_BYTES
    num_sent: int = 0  # folders that arrived on some node
    _loans: dict[tuple[str, str], _Loan] = field(default_factory=dict)
    # What is about to send a folder, and the nodes that have asked for it so far.
    _asked: "dict[str, tuple[asyncio.Task[dict[str, str | Exception]], set[str]]]" = field(
        default_factory=dict
    )
    _returning: "set[asyncio.Task[None]]" = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def lend(self, folder: str, node: str) -> AsyncIterator[str]:
        """Where the node has the folder, as long as the block lasts.

        Raises EngineError when the node is gone, MachineError where the folder does not fit.
        """
        loan = self._loans.get((node, folder))
        if loan is None:
            loan = self._loans[node, folder] = _Loan(self._sending(folder, node))
        loan.num_users += 1
        try:
            # Shielded: others may wait for the same arrival.
            place = (await asyncio.shield(loan.sending))[node]
            if isinstance(place, Exception):
                raise place
            yield place
        finally:
            loan.num_users -= 1
            if not loan.num_users:
                if loan.sending.done():
                    del self._loans[node, folder]
                task = asyncio.create_task(self._return(folder, node, loan))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)

    def _sending(self, folder: str, node: str) -> "asyncio.Task[dict[str, str | Exception]]":
        """Has the folder sent, soon: who asks within a moment is served by the same reading."""
        if folder not in self._asked:
            nodes: set[str] = set()
            task = asyncio.create_task(self._send(folder, nodes))
            # Whoever asked may have been cancelled: no warning of asyncio's about the error.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._asked[folder] = task, nodes
        task, nodes = self._asked[folder]
        nodes.add(node)
        return task

    async def _return(self, folder: str, node: str, loan: _Loan) -> None:
        """Removes a folder that nobody uses, once it is there."""
        await asyncio.wait({loan.sending})
        if loan.num_users:
            return  # somebody asked for it before it was there
        if self._loans.get((node, folder)) is loan:
            del self._loans[node, folder]
        with contextlib.suppress(Exception):  # it never arrived, or node and folder are gone
            place = loan.sending.result()[node]
            if isinstance(place, str):
                await remote(self.agents[node].remove.remote(place))

    async def _send(self, folder: str, nodes: set[str]) -> dict[str, str | Exception]:
        """One reading of the files for all nodes; a node that fails does not hold the others."""
        await asyncio.sleep(_GATHER_SECONDS)
        del self._asked[folder]
        started = time.perf_counter()
        sizes = file_sizes(Path(folder))
        lines = {node: _Line(self.agents[node], sizes) for node in nodes}
        await asyncio.gather(*(line.open() for line in lines.values()))
        under_way: deque[Awaitable[Any]] = deque()
        for name, offset, size in _chunks(sizes, self.chunk_bytes):
            chunk = await asyncio.to_thread(self._load, Path(folder, name), offset, size)
            if len(under_way) == _WINDOW:  # until the slowest has room: the store holds a few only
                await under_way.popleft()
            writes = (line.write(name, offset, chunk) for line in lines.values())
            under_way.append(asyncio.gather(*writes))
            del chunk
        await asyncio.gather(*under_way)
        arrived = {node: await line.close() for node, line in lines.items()}
        self.num_sent += sum(isinstance(place, str) for place in arrived.values())
        self._tell("sent", Path(folder), sizes, started, f" to {len(lines)} node(s)")
        return arrived

    def _load(self, file: Path, offset: int, size: int) -> Any:
        import numpy as np

        data = np.fromfile(file, dtype=np.uint8, count=size, offset=offset)
        if data.size != size:
            raise DataError(f"{file}: ended {size - data.size} bytes early")
        return self.put(data)

    async def fetch(self, node: str, folder: str, target: Path) -> None:
        """Brings a folder of a node's here, as `target`: whole or not at all."""
        agent, started = self.agents[node], time.perf_counter()
        sizes: dict[str, int] = await remote(agent.list_files.remote(folder))
        with disk_errors(target), whole_folder(target) as partial:
            for name in sizes:
                (partial / name).touch()
            await self._receive(agent, folder, sizes, partial)
            if file_sizes(partial) != dict(sizes):
                raise DataError(f"{target}: not all of it arrived")
            for name in sizes:  # what takes long is not to hold the event loop
                await asyncio.to_thread(sync, partial / name)
        self._tell("fetched", target, sizes, started, "")
        await remote(agent.remove.remote(folder))

    def _tell(
        self, done: str, folder: Path, sizes: Mapping[str, int], started: float, where: str
    ) -> None:
        size, seconds = sum(sizes.values()) / 1e6, time.perf_counter() - started
        self.say(f"{done} {folder.name} ({size:.0f} MB){where} in {seconds:.1f} s")

    async def _receive(
        self, agent: Any, folder: str, sizes: Mapping[str, int], partial: Path
    ) -> None:
        room = asyncio.Semaphore(_WINDOW)

        async def receive(name: str, offset: int, size: int) -> None:
            async with room:
                data: bytes = await remote(agent.read.remote(folder, name, offset, size))
                await asyncio.to_thread(write_at, partial / name, offset, data)

        chunks = _chunks(sizes, self.chunk_bytes)
        tasks = [asyncio.create_task(receive(*chunk)) for chunk in chunks]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


@dataclass
class _Line:
    """A folder on its way to one node. After the first error nothing more is sent."""

    agent: Any
    sizes: Mapping[str, int]
    place: str = ""
    problem: Exception | None = None

    async def open(self) -> None:
        self.place = await self._done(self.agent.open_folder.remote(self.sizes)) or ""

    async def write(self, name: str, offset: int, chunk: Any) -> None:
        if self.problem is None:
            await self._done(self.agent.write.remote(self.place, name, offset, chunk))

    async def close(self) -> str | Exception:
        """Where the whole folder is; or what went wrong, after what has come is removed."""
        if self.problem is None:
            await self._done(self.agent.close_folder.remote(self.place, self.sizes))
        if self.problem is not None and self.place:
            with contextlib.suppress(Exception):  # the node may be gone; the cause is shown
                await remote(self.agent.remove.remote(self.place))
        return self.problem or self.place

    async def _done(self, call: Awaitable[Any]) -> Any:
        """A call's result; None, and the problem is noted, where it failed."""
        try:
            return await remote(call)
        except Exception as error:  # shown to whoever waits for this node
            self.problem = self.problem or error


def _chunks(sizes: Mapping[str, int], chunk_bytes: int) -> Iterator[tuple[str, int, int]]:
    """(file, offset, size) of every chunk. An empty file has none."""
    for name, size in sizes.items():
        for offset in range(0, size, chunk_bytes):
            yield name, offset, min(chunk_bytes, size - offset)
