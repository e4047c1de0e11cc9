"""One process at a time writes a run directory."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stargate.errors import DataError

LOCK_FILE = ".lock"


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Holds the lock of the run directory `root`. Raises DataError at once if another has it.

    The kernel drops the lock when its process dies, however it dies, so nothing stale is left; the
    file stays, with the last holder's pid and host in it. Programs that are started meanwhile (Ray,
    engines) do not inherit it: Python's file handles are closed on exec. On NFS it holds between
    hosts, too, if the server has locks.
    """
    file = root / LOCK_FILE
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(f"{root}: can't be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{root}: another process works on it right now ({_holder(file)}); wait until it "
                "has ended, or end it"
            ) from None
        except OSError as error:
            raise DataError(
                f"{file}: this file system has no locks: {error.strerror}; put runs_dir elsewhere"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        try:
            yield
        finally:
            # Explicitly: a child that is just being started still has a copy of the handle.
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def is_held(root: Path) -> bool:
    """Whether a process works on the run directory `root` at this moment.

    For that moment it takes the lock itself, shared, if nobody has it.
    """
    try:
        handle = os.open(root / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: no run works there
        return False
    finally:
        os.close(handle)
    return False


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not written its pid yet"
