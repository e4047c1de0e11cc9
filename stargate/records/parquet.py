"""Parquet files that are known when they are damaged: each page has its CRC, the file its sha256.

The sha256 is over the whole file and stands in the file, in the footer's key-value metadata, with
64 zeros in its own place while it is computed. So it needs no second file, which would cost another
fsync per write, could be lost, and could be apart from its file for a moment; and it covers the
footer too, which Parquet's own page checksums do not. These are there as well: any reader that asks
for them (ours always does) notices damaged pages without reading the file twice. pandas, DuckDB and
pyarrow read such files like any other. Files of earlier versions have neither; they count as whole
if all of their rows can be read.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stargate.errors import DataError, one_line
from stargate.records.files import read_errors, read_exactly

_CHECKSUM = "stargate.checksum"
# Before the digest. Model text can't pass for it: statistics, which hold some, come before the
# key-value metadata in the footer, and the last mark counts.
_MARK = b"stargate-sha256:"
_BLANK = b"0" * 64
_MAGIC = b"PAR1"
# Bytes hashed at a time.
_CHUNK = 1 << 20
# Rows at once while a table is read: as Python objects they are 10 x as large.
_READ_ROWS = 1024
# What the values of a file may have, in bytes, or in times of the file where that is more. A page
# may hold one text once and name it a thousand times, so its size, too, says nothing of its rows'.
_MAX_UNFOLDED, _MAX_TIMES = 256 << 20, 100
# Of one value that is read, at most, where it is no text: the file may hold equal ones once.
_VALUE_BYTES = 8


def write_parquet(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes batches to `path` with checksums; not atomic by itself."""
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch)
        blank = (_MARK + _BLANK).decode()
        writer.add_key_value_metadata({**(metadata or {}), _CHECKSUM: blank})
    with path.open("r+b") as file:
        place = _digest_place(file)
        if place is None:
            raise DataError(f"{path}: pyarrow wrote no place for the checksum")
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest)


def read_rows(
    path: Path, columns: Sequence[str] | None = None, *, finite: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, with these columns if it has them (of nested ones:
    "turns.list.element.question"). Raises DataError, also for text that is no UTF-8 and, if asked,
    for a number that is not `finite`.
    """
    for batch in read_batches(path, columns):
        for name, column in zip(batch.schema.names, batch.columns, strict=True) if finite else ():
            with _reading(path):
                all_finite = _all_finite(column)
            if not all_finite:
                raise DataError(f"{path}: {name} holds a number that is not finite")
        with _reading(path):
            rows = batch.to_pylist()
        yield from rows


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with read_errors(path):
            yield
    except MemoryError:  # pyarrow's own is one of the following, too
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error


def read_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet file. Raises DataError, at the latest at the damaged page, and
    before anything is read if a small file has large rows.
    """
    with _reading(path):
        _require_no_bomb(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(_READ_ROWS, columns=columns, use_threads=False)


def _require_no_bomb(path: Path) -> None:
    """Raises DataError if the rows of a file are many times as large as the file, by what its
    footer says, or by what its texts have: these are read without being repeated for it.
    """
    limit = max(_MAX_UNFOLDED, _MAX_TIMES * path.stat().st_size)
    footer = pq.read_metadata(path)
    leaves = [footer.schema.column(i) for i in range(footer.num_columns)]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    size = sum(_declared_bytes(footer.row_group(i)) for i in range(footer.num_row_groups))
    if texts and size <= limit:
        with pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_READ_ROWS, columns=texts, use_threads=False):
                size += sum(map(_text_bytes, batch.columns))
                if size > limit:
                    break
    if size > limit:
        raise DataError(
            f"{path}: its rows would take more than {limit:,} bytes, many times the file; not read"
        )


def _declared_bytes(group: Any) -> int:
    """What the columns of a row group have by the footer. Values that are alike need no bytes."""
    chunks = map(group.column, range(group.num_columns))
    return sum(max(c.total_uncompressed_size, c.num_values * _VALUE_BYTES) for c in chunks)


def _text_bytes(column: pa.Array) -> int:
    """Bytes of all texts in a column, however deep, of which each is held once."""
    if pa.types.is_dictionary(column.type):
        return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    if pa.types.is_nested(column.type):
        return sum(map(_text_bytes, _children(column)))
    return int(column.nbytes)


def _children(column: pa.Array) -> list[pa.Array]:
    flat = column.flatten()
    return flat if isinstance(flat, list) else [flat]


def read_metadata(path: Path) -> tuple[int, dict[str, str]]:
    """Number of rows and key-value metadata of a Parquet file. Raises DataError."""
    with _reading(path):
        footer = pq.read_metadata(path)
    found = footer.metadata or {}
    values = {key.decode(): value.decode(errors="replace") for key, value in found.items()}
    return footer.num_rows, values


def file_problem(path: Path) -> str | None:
    """What is wrong with a Parquet file; None if it is as it was written."""
    with read_errors(path), path.open("rb") as file:
        place = _digest_place(file)
        if place is not None:
            file.seek(place)
            written = file.read(len(_BLANK))
            return None if written == _digest(file, place) else "its checksum does not match"
    try:  # a file of an earlier version, or one whose end is damaged
        for _ in read_rows(path):
            pass
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _all_finite(column: pa.Array) -> bool:
    """Whether no number in a column is infinite or NaN, however deep it stands."""
    if pa.types.is_floating(column.type):
        return pc.all(pc.is_finite(column)).as_py() is not False  # None: there are no numbers
    if pa.types.is_struct(column.type):
        return all(map(_all_finite, column.flatten()))
    return not pa.types.is_list(column.type) or _all_finite(column.flatten())


def _digest_place(file: BinaryIO) -> int | None:
    """Where in the file the digest's 64 characters stand; None if it has none."""
    size = file.seek(0, os.SEEK_END)
    if size < 12:
        return None
    file.seek(size - 8)
    tail = file.read(8)
    start = size - 8 - int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or start < 4:
        return None
    file.seek(start)
    at = file.read(size - 8 - start).rfind(_MARK)
    place = start + at + len(_MARK)
    return None if at < 0 or place + len(_BLANK) > size - 8 else place


def _digest(file: BinaryIO, place: int) -> bytes:
    """The file's sha256 in hexadecimal, with zeros at `place`."""
    sha256 = hashlib.sha256()
    file.seek(0)
    for chunk in read_exactly(file, place):
        sha256.update(chunk)
    sha256.update(_BLANK)
    file.seek(place + len(_BLANK))
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
    return sha256.hexdigest().encode()
