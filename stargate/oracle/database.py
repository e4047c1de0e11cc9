"""The SQLite file behind cache and meter: one writing thread, group commit, locks between
processes.

    event loop --submit(operation)--> queue --> writer thread: BEGIN, all that waits, COMMIT (one
    fsync) --> futures

Journal mode WAL with synchronous=FULL: a commit is on the disk when it returns, so an answer
survives a power cut as well as a kill -9. That costs one fsync per commit, which all answers of the
moment share. synchronous=NORMAL would save the fsync and could lose the last, already paid answers
in a power cut.

Locks between processes are byte ranges of `FILE.lock` (open file description locks): the system
drops them when their process dies, however it dies, so nothing stale is left behind.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from stargate.errors import DataError, MachineError, StargateError

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
_Job = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE answers (
    key BLOB PRIMARY KEY,        -- SHA-256 of the canonical request
    created REAL NOT NULL,       -- Unix time, s
    purpose TEXT NOT NULL,
    record TEXT NOT NULL,
    request TEXT NOT NULL,       -- the canonical request
    text TEXT NOT NULL,
    refusal TEXT,
    finish_reason TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    usage_estimated INTEGER NOT NULL
);
CREATE TABLE meter (             -- what was paid, per model; money in billionths
    model TEXT NOT NULL,
    confirmed INTEGER NOT NULL,  -- 0: perhaps billed, but no answer arrived
    calls INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    nanos INTEGER NOT NULL,
    unpriced_calls INTEGER NOT NULL,
    PRIMARY KEY (model, confirmed)
);
CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, started REAL NOT NULL);
CREATE TABLE reservations (      -- money set aside for calls in flight
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL,
    model TEXT NOT NULL,
    nanos INTEGER NOT NULL
);
"""
# One transaction takes at most so many operations: enough that the fsync is shared, few enough to
# stay short.
_MAX_BATCH = 1024
# Another process's transaction is over long before (s).
_BUSY_TIMEOUT_S = 60.0
# The number that who opens the file holds. It is above those of requests and sessions (cost.py).
_OPENING = (1 << 63) - 2
# struct flock of Linux on 64 bits: type, whence, start, length, pid.
_FLOCK = "hhqqi"


class Database:
    """An open cache file. `submit` writes, `reader` reads; both see all committed data of all
    processes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.locks = RangeLocks(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise DataError(f"{path}: can't be opened: {error.strerror}") from None
        try:
            # SQLite makes a new file a WAL file without heeding the busy timeout: of two processes
            # that open it at once, one would be told that the database is locked.
            with self.locks.held(_OPENING):
                self.reader = _connect(path)
                _prepare(self.reader, path)
                self._connection = _connect(path)
        except BaseException as error:
            self.locks.close()
            if isinstance(error, sqlite3.Error):
                raise _explain(path, error) from None
            raise
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="oracle-cache", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Runs `operation` in the writer's next transaction. The future is done once that is on the
        disk.
        """
        if self._closed:
            raise RuntimeError(f"{self.path} is closed")
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a caller that goes away stops no operation
        self._jobs.put((operation, future))
        return asyncio.wrap_future(future)

    def run(self, operation: Operation[T]) -> T:
        """Runs `operation` in a transaction of its own, at once, on the caller's thread."""
        try:
            return _transaction(self.reader, lambda: operation(self.reader))
        except sqlite3.Error as error:
            raise _explain(self.path, error) from None

    def read(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        try:
            return self.reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _explain(self.path, error) from None

    def close(self) -> None:
        """Writes what is waiting and closes the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join()
        self._connection.close()
        self.reader.close()
        self.locks.close()

    def _write(self) -> None:
        is_open = True
        while is_open:
            jobs = [self._jobs.get()]
            while len(jobs) < _MAX_BATCH and not self._jobs.empty():  # only this thread takes any
                jobs.append(self._jobs.get())
            is_open = None not in jobs
            if batch := [job for job in jobs if job is not None]:
                self._commit(batch)

    def _commit(self, batch: list[_Job]) -> None:
        try:
            results = _transaction(
                self._connection, lambda: [operation(self._connection) for operation, _ in batch]
            )
        except Exception as error:
            # A defect too must reach those who wait, not end this thread.
            problem = _explain(self.path, error) if isinstance(error, sqlite3.Error) else error
            for _, future in batch:
                future.set_exception(problem)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)


class RangeLocks:
    """Exclusive locks on numbers, between processes and between Databases of one process.

    They hold until released or until the process ends. Locks of one object do not exclude each
    other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def try_lock(self, number: int) -> bool:
        """Takes the lock if nobody else has it."""
        return self._set(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, number)

    def unlock(self, number: int) -> None:
        self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, number)

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[None]:
        """Waits for the lock, on the caller's thread, and holds it."""
        self._set(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, number)
        try:
            yield
        finally:
            self.unlock(number)

    def close(self) -> None:
        os.close(self._file)

    def _set(self, command: int, kind: int, number: int) -> bool:
        try:
            fcntl.fcntl(self._file, command, struct.pack(_FLOCK, kind, os.SEEK_SET, number, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise MachineError(
                f"{self._path}: the file system can't lock files ({error.strerror}); "
                "put the cache on a local disk"
            ) from None
        return True


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Creates the tables in a new file; refuses a file of another kind or version."""

    def create() -> None:
        # Two processes may open a new file at once: who comes second finds the tables.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            return
        if version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise DataError(
                f"{path}: not an Oracle cache of this version (expected {SCHEMA_VERSION}, got "
                f"{version}); name another file"
            )
        # executescript would commit in between, and two processes could meet half the tables.
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    _transaction(connection, create)


def _transaction(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _explain(path: Path, error: sqlite3.Error) -> StargateError:
    """SQLite's error as one line: the disk's fault or the file's."""
    text = str(error)
    if "disk is full" in text or "disk I/O" in text or "locked" in text:
        return MachineError(f"{path}: {text}")
    return DataError(f"{path}: {text}; if the file is damaged, move it away")
