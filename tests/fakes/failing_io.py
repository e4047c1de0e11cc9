"""A file system on which one chosen call fails: what SQLite's tests do below their store.

Counted and failed is every call of Python's that takes or gives a file below one folder: names and
folders (`os`), the raw reads and writes under a file's buffer, and what pyarrow does with Parquet
files, which goes through Python's files meanwhile. A call that fails has done nothing, but for
`close`, after which the handle is gone, as on Linux.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet.core as parquet
import pytest

# Of `os`: all that the store and the sync call with a path or a handle.
_BY_PATH = (
    *("open", "stat", "lstat", "mkdir", "rmdir", "unlink", "rename", "replace"),
    *("listdir", "scandir"),
)
_BY_HANDLE = ("fsync", "pwrite", "close")
_AFTER = frozenset({"close"})
Kind = int | type[MemoryError]
Call = tuple[str, str]  # what was called, the file's name below the folder


_FAULTS: tuple[Kind, ...] = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, MemoryError)


def faults_of(call: Call) -> tuple[Kind, ...]:
    """How it may fail. Whoever has a file open is not denied it."""
    return (*_FAULTS, errno.EACCES) if call[0] in _BY_PATH else _FAULTS


def name_of(kind: Kind) -> str:
    return errno.errorcode[kind] if isinstance(kind, int) else kind.__name__


class FailingIO:
    """`fails(calls so far, this one)` says how a call fails; None lets it pass."""

    def __init__(self, root: Path, fails: Callable[[list[Call], Call], Kind | None]) -> None:
        self._root = os.fspath(root)
        self._handles: dict[int, str] = {}
        self.calls: list[Call] = []
        self._fails = fails

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """All calls are seen meanwhile."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _BY_PATH:
                patch.setattr(os, name, self._by_path(name, getattr(os, name)))
            for name in _BY_HANDLE:
                patch.setattr(os, name, self._by_handle(name, getattr(os, name)))
            patch.setattr(io, "open", self._open)
            patch.setattr(parquet, "_resolve_filesystem_and_path", _through_python)
            yield

    def call(self, name: str, path: str) -> None:
        """Counts a call and raises what it shall fail with."""
        call = (name, os.path.relpath(path, self._root))
        kind = self._fails(self.calls, call)
        self.calls.append(call)
        if isinstance(kind, int):  # the system names a file if it was given a name
            raise OSError(kind, os.strerror(kind), *([path] if name in _BY_PATH else []))
        if kind is not None:
            raise kind

    def _is_below(self, path: Any) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        whole = os.fspath(path)
        return isinstance(whole, str) and (whole + "/").startswith(self._root + "/")

    def _by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any = ".", *given: Any, **named: Any) -> Any:
            if not self._is_below(path):
                return real(path, *given, **named)
            self.call(name, os.fspath(path))
            result = real(path, *given, **named)
            if name == "open":
                self._handles[result] = os.fspath(path)
            return result

        return called

    def _by_handle(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(handle: int, *given: Any) -> Any:
            path = self._handles.get(handle)
            if path is None:
                return real(handle, *given)
            if name in _AFTER:
                del self._handles[handle]
                real(handle)
                return self.call(name, path)
            self.call(name, path)
            return real(handle, *given)

        return called

    def _open(
        self, file: Any, mode: str = "r", buffering: int = -1, *given: Any, **named: Any
    ) -> Any:
        if not self._is_below(file):
            return _OPEN(file, mode, buffering, *given, **named)
        self.call("open", os.fspath(file))
        raw = _Raw(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffered = io.BufferedReader(raw) if mode.strip("bt") == "r" else kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *given, **named)


_OPEN = io.open


class _Streams:
    """As much of a file system of pyarrow's as it asks for when it gets a path."""

    def open_output_stream(self, path: str, compression: None) -> pa.PythonFile:
        return pa.PythonFile(open(path, "wb"), "w")

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(open(path, "rb"), "r")


def _through_python(where: Any, *given: Any, **named: Any) -> tuple[Any, Any]:
    return (_Streams(), os.fspath(where)) if isinstance(where, str | Path) else (None, where)


class _Raw(io.FileIO):
    def __init__(self, owner: FailingIO, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._owner, self._path = owner, path
        owner._handles[self.fileno()] = path

    def readinto(self, buffer: Any) -> int | None:
        self._owner.call("read", self._path)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._owner.call("read", self._path)
        return super().readall()

    def write(self, data: Any) -> int:
        self._owner.call("write", self._path)
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            self._owner._handles.pop(self.fileno(), None)
            super().close()
            self._owner.call("close", self._path)
