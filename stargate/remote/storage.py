"""Files on shared storage, by name: put, read, delete, list. Knows nothing of runs.

    s3, gs, hdfs     pyarrow.fs.FileSystem.from_uri
    file             a temporary name, fsync, rename: files.py
    other schemes    fsspec's, through pyarrow.fs.PyFileSystem

A reader sees a file whole or not at all where the storage can do that: object stores make an object
visible when its upload has ended; elsewhere a temporary name is renamed. Some of fsspec's can do
neither, and a kill in the middle leaves a torn file: sync.py's checksums tell.

Whatever a storage raises becomes StorageError: one line, without the values of the environment
variables that hold credentials.
"""

import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from stargate.config.uri import StorageUri
from stargate.errors import ConfigError, ExitCode, MachineError, StargateError, one_line
from stargate.records.files import make_folder, read_exactly, write_atomically
from stargate.text.masking import MASK, Masker, secret_values

# Bytes moved at a time.
_CHUNK = 1 << 20
# Where an object is put under its own name, since it is visible only when it is whole.
_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2", "memory"}
)
_NATIVE_OBJECT_STORES = frozenset({"s3", "gs", "gcs"})  # need no folders
_NATIVE = _NATIVE_OBJECT_STORES | {"hdfs", "viewfs", "file"}
# Shorter values are placeholders, too likely to be a word of an honest message.
_MIN_SECRET_CHARS = 8


class StorageError(StargateError):
    """Shared storage does not answer, or did not do what it was asked for."""

    exit_code = ExitCode.STORAGE


class Storage:
    """One folder on shared storage. Names are relative, with slashes."""

    def __init__(self, filesystem: Any, root: str, uri: StorageUri) -> None:
        """`filesystem` is pyarrow's; `uri` is what messages call this folder."""
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._uri = uri

    def __str__(self) -> str:
        return str(self._uri)

    def child(self, name: str) -> "Storage":
        """The folder `name` in this one."""
        return Storage(self._filesystem, self._path(name), self._uri.child(name))

    def put(
        self, name: str, source: BinaryIO, size: int, moved: Callable[[int], None] | None = None
    ) -> None:
        """Writes the next `size` bytes of `source` as `name`, and tells `moved` as they go.

        Raises StorageError, also if fewer bytes are there afterwards.
        """
        path = self._path(name)

        def write(target: str | Path) -> None:
            with self._filesystem.open_output_stream(str(target)) as stream:
                for chunk in read_exactly(source, size):
                    stream.write(chunk)
                    if moved is not None:
                        moved(len(chunk))

        with self._errors(f"writing {name}"):
            if self._uri.scheme == "file":  # pyarrow's local file system does no fsync
                make_folder(Path(path).parent)
                write_atomically(Path(path), write)
            else:
                if self._uri.scheme not in _NATIVE_OBJECT_STORES:
                    self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
                if self._uri.scheme in _OBJECT_STORES:
                    write(path)
                else:
                    self._write_and_rename(path, write)
        if (found := self.size(name)) != size:
            there = "nothing" if found is None else f"{found} bytes"
            raise StorageError(f"{self}: writing {name}: {there} there, {size} bytes were sent")

    def _write_and_rename(self, path: str, write: Callable[[str], None]) -> None:
        temporary = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            write(temporary)
            self._filesystem.move(temporary, path)
        except BaseException:
            with suppress(Exception):  # what failed is said; this is tidying up
                self._filesystem.delete_file(temporary)
            raise

    def put_bytes(self, name: str, content: bytes) -> None:
        self.put(name, io.BytesIO(content), len(content))

    @contextmanager
    def reading(self, name: str) -> Iterator[Iterator[bytes] | None]:
        """The content of `name` in chunks; None if it is not there. Raises StorageError."""
        with self._errors(f"reading {name}"):
            try:
                stream = self._filesystem.open_input_stream(self._path(name))
            except FileNotFoundError:
                yield None
                return
            with stream:
                yield iter(lambda: stream.read(_CHUNK), b"")

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """The content of a small file; None if it is not there. Raises StorageError."""
        content = bytearray()
        with self.reading(name) as chunks:
            if chunks is None:
                return None
            for chunk in chunks:
                content += chunk
                if len(content) > max_bytes:
                    raise StorageError(f"{self}: {name} is larger than {max_bytes} bytes")
        return bytes(content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        info = self._info(name)
        return None if info is None else int(info.size)

    def modified(self, name: str) -> float | None:
        """When a file was written, by the storage's clock, in seconds; None if it does not say."""
        info = self._info(name)
        stamp = None if info is None else info.mtime_ns
        return None if stamp is None else stamp / 1e9

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, without those below it; none if it is not there."""
        from pyarrow.fs import FileSelector, FileType

        with self._errors(f"listing {folder}"):
            selector = FileSelector(self._path(folder), allow_not_found=True)
            found = self._filesystem.get_file_info(selector)
            return sorted(info.base_name for info in found if info.type == FileType.File)

    def delete(self, name: str) -> None:
        """Deletes a file; nothing if it is not there."""
        with self._errors(f"deleting {name}"), suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(name))

    def check_writable(self) -> None:
        """Writes, reads and deletes a small file. Raises StorageError."""
        with self._probe(content := b"stargate") as name:
            if self.read(name, len(content)) != content:
                raise StorageError(f"{self}: gives back something else than what was written")

    def now(self) -> float | None:
        """The time by the storage's clock, in seconds; None if it does not say."""
        with self._probe(b"") as name:
            return self.modified(name)

    @contextmanager
    def _probe(self, content: bytes) -> Iterator[str]:
        """The name of a file that is there meanwhile."""
        name = f".stargate-probe-{uuid.uuid4().hex}"
        self.put_bytes(name, content)
        try:
            yield name
        finally:
            self.delete(name)

    def _info(self, name: str) -> Any:
        from pyarrow.fs import FileType

        with self._errors(f"asking for {name}"):
            info = self._filesystem.get_file_info(self._path(name))
        return info if info.type == FileType.File else None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except MachineError as error:
            raise StorageError(str(error)) from None
        except StargateError:
            raise
        except Exception as error:  # each of fsspec's libraries has errors of its own
            # From None: what is chained could show a credential in a traceback.
            raise StorageError(f"{self}: {doing}: {_problem(error)}") from None


def open_storage(uri: StorageUri) -> Storage:
    """The folder at an address. Raises ConfigError for a scheme that is not there, StorageError."""
    from pyarrow.fs import FileSystem

    try:
        if uri.scheme in _NATIVE:
            filesystem, root = FileSystem.from_uri(str(uri))
        else:
            filesystem, root = _open_fsspec(uri)
    except StargateError:
        raise
    except Exception as error:  # each of fsspec's libraries has errors of its own
        raise StorageError(f"{uri}: {_problem(error)}") from None
    return Storage(filesystem, root, uri)


def _open_fsspec(uri: StorageUri) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]  # it ships no types
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    try:
        filesystem, root = fsspec.core.url_to_fs(str(uri), use_listings_cache=False)
    except (ValueError, ImportError) as error:  # an unknown scheme; its package is not there
        raise ConfigError(f"{uri.scheme}:// addresses: {_problem(error)}") from None
    return PyFileSystem(FSSpecHandler(filesystem)), root


def _problem(error: Exception) -> str:
    """An error's text without the values of variables that hold credentials."""
    secrets = ((value, MASK) for value in secret_values(os.environ))
    mask = Masker(secrets, min_chars=_MIN_SECRET_CHARS)
    return mask(one_line(error) or type(error).__name__)
