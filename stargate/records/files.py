"""Files and folders that survive a kill: written whole or not at all.

    write(temporary) -> fsync -> rename -> fsync of the folder      write_atomically
    the same for a folder of files                                  whole_folder, publish_folder
    one process at a time writes a run directory                    hold, is_held

A disk that takes no more is MachineError, which names the folder and what is free: the run stops,
what is on disk stays whole, and a resumed run goes on from there.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stargate.errors import DataError, MachineError, one_line

LOCK_FILE = ".lock"
# Bytes read at a time.
_CHUNK = 1 << 20
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")
# What the system says when a disk, a quota or a limit on file sizes is full, and what it says when
# a disk is not to be written.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
_UNWRITABLE = frozenset({errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE})
# What says nothing of a file, but of the disk or the process that asks for it.
_PASSING = frozenset({errno.EINTR, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_NOT_THE_FILE = _FULL | _PASSING | {errno.EIO, errno.ESTALE}


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write(temporary path)`, syncs and renames: readers see the whole file or none.

    A device or a pipe (/dev/null, say) is written as it is: a file must not take its place.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    temporary = _temporary(path)
    with disk_errors(path):
        try:
            write(temporary)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` when the block ends well; else it is removed.

    Readers see the whole folder, or what was there before. What killed writers of `target` left is
    removed first. Raises OSError.
    """
    remove_temporaries(target.parent, of=target.name)
    partial = _temporary(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        publish_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, target: Path) -> None:
    """Syncs a finished folder and gives it the name `target`, in place of what stood there.

    Raises OSError; then what stood there has its name again.
    """
    for path in [*partial.rglob("*"), partial]:
        if not path.is_symlink():
            sync(path)
    old = _temporary(target.with_name(f"{target.name}.old"))
    had_one = target.exists()
    if had_one:
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if had_one:
            old.rename(target)
        raise
    sync(target.parent)
    if had_one:
        shutil.rmtree(old)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A disk that is full or can't be written, while `path` is, becomes MachineError."""
    try:
        yield
    except OSError as error:
        problem = disk_problem(error, path)
        if problem is None and error.errno in _PASSING:
            problem = f"{path}: can't be written: {os.strerror(error.errno)}"
        if problem is None:
            raise
        raise MachineError(problem) from error


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """What keeps us from reading `path`, but is no fault of the file, becomes MachineError: it must
    not pass for damage.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_THE_FILE:
            raise
        problem = f"{path}: can't be read: {os.strerror(error.errno)}"
        raise MachineError(problem) from error


def disk_problem(error: OSError, path: Path) -> str | None:
    """One line about a full or unwritable disk; None if the error is another one."""
    if error.errno in _FULL:
        return (
            f"{path.parent}: {_what_is_full(path.parent)}, {path.name} can't be written; what was "
            "finished is on disk: make room, then go on with `stargate resume`"
        )
    if error.errno in _UNWRITABLE:
        return f"{path.parent}: {path.name} can't be written: {os.strerror(error.errno)}"
    return None


def _what_is_full(folder: Path) -> str:
    try:
        state = os.statvfs(folder)
    except OSError:
        return "the disk is full"
    if state.f_files and not state.f_favail:  # some file systems count no inodes
        return f"the disk has no inodes left for more files (of {state.f_files:,})"
    free, total = (blocks * state.f_frsize / 2**20 for blocks in (state.f_bavail, state.f_blocks))
    return f"the disk is full ({free:,.1f} of {total:,.0f} MiB are free)"


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_at(file: Path, offset: int, data: Any) -> None:
    """Puts bytes (anything with a buffer of them) at their place in a file, new or not.

    Neither syncs nor truncates; several may write to one file at once.
    """
    handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        left = memoryview(data)
        while left:
            written = os.pwrite(handle, left, offset)
            left, offset = left[written:], offset + written
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents; their names are durable when this returns."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing if it is not there.

    Raises MachineError and OSError, where a pattern of pathlib's finds nothing: rows that are not
    seen would be made again, under the names of those that are there.
    """
    try:
        with read_errors(folder):
            return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def entries_within(folder: Path) -> list[Path]:
    """What is in a folder and in its folders, in order. Raises as `entries`."""
    found = entries(folder)
    return sorted([*found, *(file for inner in found for file in entries(inner))])


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object, or None if the file is not there. Raises DataError."""
    if not file.is_file():
        return None
    try:
        with read_errors(file):
            values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise DataError(f"{file}: expected an object, got {type(values).__name__}")
    return values


def place_aside(path: Path) -> Path:
    """NAME.damaged-N beside a damaged file or folder: a name that is free."""
    number = 1
    while (place := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return place


def set_aside(path: Path) -> Path:
    """Renames a damaged file or folder to `place_aside`. Returns its new place."""
    with disk_errors(path):
        place = path.rename(place_aside(path))
        sync(path.parent)
    return place


def remove_temporaries(folder: Path, of: str | None = None) -> int:
    """Removes what killed writers left in a folder, or left there of one name.

    What living processes write stays. Returns how many were removed.
    """
    count = 0
    for path in folder.glob(f".{glob.escape(of)}.*.tmp" if of else ".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (int(match[1]) != os.getpid() and is_alive(int(match[1]))):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # a child of the killed may still write there
        else:
            path.unlink(missing_ok=True)
        count += 1
    return count


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no machine counts so far
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def require_plain(root: Path, but: frozenset[str]) -> None:
    """Raises DataError for a link, a pipe or a device anywhere in a folder that may be of others.

    What is written under a link's name lands where it points to, and who opens a pipe waits for
    ever. Folders of its own that are named in `but` are not looked at.
    """
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = sorted(set(folders) - but)
        for name in (*folders, *names):
            mode = Path(folder, name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise DataError(
                    f"{Path(folder, name)}: {kind}; a run has none: put the file itself there, or "
                    "remove it"
                )


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Holds the lock of the run directory `root`. Raises DataError at once if another has it.

    The kernel drops the lock when its process dies, however it dies, so nothing stale is left; the
    file stays, with the last holder's pid and host in it. Programs that are started meanwhile (Ray,
    engines) do not inherit it: Python's file handles are closed on exec. On NFS it holds between
    hosts, too, if the server has locks.
    """
    from filelock import FileLock, Timeout  # 50 ms

    file = root / LOCK_FILE
    # What filelock else falls back to, the mere existence of a file, would outlive its holder.
    lock = FileLock(file, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise DataError(
            f"{root}: another process works on it right now ({_holder(file)}); wait until it "
            "has ended, or end it"
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise DataError(
                f"{file}: this file system has no locks: {error.strerror}; put runs_dir elsewhere"
            ) from error
        raise DataError(f"{root}: can't be written: {error.strerror}") from error
    try:
        with disk_errors(file):
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            file.write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        lock.release()


def is_held(root: Path) -> bool:
    """Whether a process works on the run directory `root` at this moment.

    For that moment it takes the lock itself if nobody has it: shared, which filelock has not, so
    that two who ask at once don't take each other for the holder.
    """
    try:
        with (root / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or a file system without them: no run works there
        return False
    return False


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not written its pid yet"


def read_exactly(source: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes, in chunks. Raises OSError if there are fewer."""
    remaining = size
    while remaining:
        if not (chunk := source.read(min(remaining, _CHUNK))):
            name = getattr(source, "name", "the file")
            raise OSError(f"{name}: ended {remaining} bytes early")
        remaining -= len(chunk)
        yield chunk


def file_sha256(file: Path) -> str:
    """A file's sha256, in hexadecimal. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def user_cache() -> Path:
    """stargate's folder in the user's cache folder (XDG_CACHE_HOME)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "stargate"
