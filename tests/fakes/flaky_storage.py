"""A shared storage in memory that fails as real ones do: outages, torn uploads, slowness, kills.

Two places to fail: below pyarrow, as a file system does (`FlakyHandler`), and above it, at a chosen
call, as a killed driver does (`KilledStorage`).
"""

import itertools
import os
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import fsspec
from pyarrow.fs import FSSpecHandler, PyFileSystem

from stargate.config.uri import StorageUri
from stargate.remote.storage import Storage

_StorageT = TypeVar("_StorageT", bound=Storage)
_NUMBERS = itertools.count()


class FlakyHandler(FSSpecHandler):  # type: ignore[misc]  # pyarrow ships no types
    """fsspec's memory file system. Set the fields to make it fail."""

    def __init__(self) -> None:
        super().__init__(fsspec.filesystem("memory"))
        self.is_down = False
        self.secret = ""  # what its error messages quote
        self.num_torn = 0  # so many of the next uploads lose their second half, without a word
        self.num_refused = 0  # uploads while it was down
        self.at_upload: Callable[[], object] = lambda: None

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.at_upload()
        if self.is_down:
            self.num_refused += 1
            raise OSError(f"connection refused {self.secret}".strip())
        if self.num_torn and "_landing" not in path:
            self.num_torn -= 1
            with self.fs.open(path, "wb") as file:
                file.write(b"half")
            return super().open_output_stream(f"{path}.elsewhere", metadata)
        return super().open_output_stream(path, metadata)


def new_name() -> str:
    """Of a folder in memory. The memory is the process's: names differ between tests."""
    return f"bucket-{os.getpid()}-{next(_NUMBERS)}"


def memory_storage(
    handler: FSSpecHandler | None = None, kind: type[_StorageT] = Storage
) -> _StorageT:
    """A new folder in memory."""
    name, handler = new_name(), handler or FSSpecHandler(fsspec.filesystem("memory"))
    return kind(PyFileSystem(handler), f"/{name}", StorageUri("memory", name))


class Killed(BaseException):
    """The driver's process ends here."""


class KilledStorage(Storage):
    """Counts puts and deletes, lets a test look at each, and dies at one of them."""

    num_calls = 0
    dies_at: int | None = None
    tears = False  # whether the file in flight is left half there

    def look(self) -> None:
        """A test's own."""

    def put(
        self, name: str, source: BinaryIO, size: int, moved: Callable[[int], None] | None = None
    ) -> None:
        if self._dies():
            if self.tears and size > 1:
                super().put(name, source, size // 2)
            raise Killed
        super().put(name, source, size, moved)
        self.look()

    def delete(self, name: str) -> None:
        if self._dies():
            raise Killed
        super().delete(name)
        self.look()

    def _dies(self) -> bool:
        self.num_calls += 1
        return self.dies_at is not None and self.num_calls >= self.dies_at
