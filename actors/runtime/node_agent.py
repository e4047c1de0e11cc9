"""What a run wants to know and to do on a node of a cluster: one small actor on each node.

    sees         whether a folder of the driver's is the same folder here
    open_folder -> write ... -> close_folder     a folder arrives, into shared memory
    list_files -> read ...                       a folder leaves

A plain class; actors/runtime/cluster.py makes it an actor. Its folders end with it: in order by
`shutdown`, and if it was killed, by the next agent on the machine, which finds them without a
lock's holder.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stargate
from stargate.config.run import RunConfig
from stargate.errors import DataError, MachineError
from stargate.records.files import write_at
from stargate.resources.account import complete_account
from stargate.resources.machine import SHARED_MEMORY, core_numbers, free_port
from stargate.resources.models import resolve_model, resolve_roleplayer

# The role whose actors have a model of their own; all others start from m_0.
ROLEPLAYER = "roleplayer"
STAGED_PREFIX = "stargate-weights-"
SCRATCH_PREFIX = "stargate-scratch-"
_LOCK = ".lock"
# Containers on one machine have it in common, as they have its cores.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself. Folders are those of this node."""

    machine: str  # the same for all nodes on one machine
    cores: tuple[int, ...]  # those that processes there may use
    sources: str  # digest of the Python files of `stargate` that run there
    base_model_dir: str | None  # None: nobody computes with it there
    roleplayer_dir: str | None


def sources_digest() -> str:
    """A digest of the package's own Python files: nodes must run what the driver runs."""
    root = Path(stargate.__file__).parent
    # actors/ and launch/ are links in a checkout, folders in what Ray unpacks.
    folders = os.walk(root, followlinks=True)
    files = [Path(folder) / name for folder, _, names in folders for name in names]
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        if file.suffix == ".py":
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def node_report(config: RunConfig, roles: Collection[str]) -> NodeReport:
    """Finds (or fetches) the models of actors of these roles on this node. Raises ModelError."""
    complete_account()
    base = voice = None
    if set(roles) - {ROLEPLAYER}:
        base = resolve_model(config.model, trust_remote_code=config.trust_remote_code)
    if ROLEPLAYER in roles:
        voice = resolve_roleplayer(config)
    return NodeReport(
        machine=_BOOT_ID.read_text().strip(),
        cores=core_numbers(),
        sources=sources_digest(),
        base_model_dir=None if base is None else str(base),
        roleplayer_dir=None if voice is None else str(voice),
    )


class NodeAgent:
    """One per node that a run uses."""

    def __init__(self) -> None:
        self._stage = _Holder(SHARED_MEMORY, STAGED_PREFIX)
        self._scratch = _Holder(Path(tempfile.gettempdir()), SCRATCH_PREFIX)

    def start(self) -> int:
        """Removes what killed agents left on this machine. Returns this process's niceness."""
        for holder in (self._stage, self._scratch):
            holder.sweep()
        return os.nice(0)

    def sees(self, file: str, content: str) -> bool:
        """Whether a file that the driver wrote is here, in a folder that can be written."""
        place = Path(file)
        try:
            same = place.read_text(encoding="utf-8") == content
        except OSError:
            return False
        return same and os.access(place.parent, os.W_OK | os.X_OK)

    def log_dir(self, name: str) -> str:
        """A folder for the logs of this node's actors, which stays there after the run."""
        return tempfile.mkdtemp(prefix=f"stargate-logs-{name}-")

    def scratch(self, name: str) -> str:
        """A place on this node's disk for a folder of that name, which is not there yet."""
        return str(self._scratch.new_folder() / name)

    def free_port(self, address: str) -> int:
        """See machine.free_port."""
        return free_port(address)

    def open_folder(self, sizes: Mapping[str, int]) -> str:
        """A new folder in shared memory for files of these sizes. Raises MachineError."""
        for name in sizes:
            if Path(name).name != name:
                raise DataError(f"not a plain file name: {name!r}")
        free = shutil.disk_usage(SHARED_MEMORY).free
        if (size := sum(sizes.values())) > free:
            raise MachineError(
                f"{socket.gethostname()}: {SHARED_MEMORY}: {size / 1e9:.2f} GB of weights don't "
                f"fit into the {free / 1e9:.2f} GB that are free"
            )
        return str(self._stage.new_folder())

    def write(self, folder: str, name: str, offset: int, chunk: Any) -> None:
        """Puts bytes at their place in a file of an open folder."""
        write_at(self._stage.own(folder) / name, offset, chunk)

    def close_folder(self, folder: str, sizes: Mapping[str, int]) -> None:
        """Raises DataError unless the files have come as a whole."""
        for name, size in sizes.items():
            file = self._stage.own(folder) / name
            if size == 0:
                file.touch()
            if file.stat().st_size != size:
                raise DataError(f"{file}: {file.stat().st_size} bytes of {size} arrived")

    def remove(self, folder: str) -> None:
        """Removes a folder that this agent made; gone already is fine."""
        for holder in (self._stage, self._scratch):
            if holder.holds(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def list_files(self, folder: str) -> dict[str, int]:
        """Names and sizes of the files in a folder on this node's disk."""
        return file_sizes(self._scratch.own(folder))

    def read(self, folder: str, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file there."""
        with (self._scratch.own(folder) / name).open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def shutdown(self) -> None:
        """Removes all folders that this agent made. Can be called twice."""
        self._stage.close()
        self._scratch.close()


def file_sizes(folder: Path) -> dict[str, int]:
    """Names and sizes of a folder's files (not of folders in it, nor of hidden ones)."""
    return {
        file.name: file.stat().st_size
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".")
    }


class _Holder:
    """A folder of one process's folders; its lock is held as long as the process lives."""

    def __init__(self, parent: Path, prefix: str) -> None:
        self._parent, self._prefix = parent, prefix
        self._root: Path | None = None
        self._lock = -1
        self._count = 0

    def new_folder(self) -> Path:
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self._parent))
            unnamed = self._root / f"{_LOCK}.new"
            self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            unnamed.rename(self._root / _LOCK)  # held before anybody can find it
        self._count += 1
        folder = self._root / str(self._count)
        folder.mkdir()
        return folder

    def holds(self, folder: str) -> bool:
        return self._root is not None and Path(folder).is_relative_to(self._root)

    def own(self, folder: str) -> Path:
        if not self.holds(folder):
            raise DataError(f"{folder}: not a folder of this agent")
        return Path(folder)

    def sweep(self) -> None:
        """Removes folders whose holder is dead."""
        for folder in self._parent.glob(f"{self._prefix}*"):
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR)
            except OSError:
                continue  # another's, or just being made
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            os.close(self._lock)
            self._root = None
