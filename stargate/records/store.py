"""The run directory: what a run writes, and how it is read back.

    RUN/config.yaml environment.json metrics.jsonl summary.json logs/ models/m1/
    RUN/t0/{dialogues,scores,selections,examples}.parquet      one iteration
    RUN/eval-m0/{dialogues,controls,responses,verdicts}.parquet  one evaluation

Rows are durable before `append` returns: they are written as small part files
(RUN/t0/dialogues/part-000000.parquet, many rows in one when many arrive together) under a temporary
name, synced and renamed; `compact` merges the parts of a finished stage into one file. Everything
is plain Parquet and JSON for pandas, DuckDB or pyarrow.

Parts are numbered through and no number is used twice. A merged file says (in its metadata) below
which number all parts are in it, so a part that a killed `compact` had no time to delete is not
read a second time. What a killed run leaves is put in order by repair.py.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from stargate.config.files import load_config
from stargate.config.run import RunConfig
from stargate.errors import DataError, one_line
from stargate.records.files import (
    disk_errors,
    entries,
    entries_within,
    make_folder,
    read_errors,
    read_json,
    require_plain,
    sync,
    write_atomically,
    write_text,
)
from stargate.records.parquet import read_batches, read_metadata, read_rows, write_parquet
from stargate.records.schemas import KEYS, SCHEMAS, Row, record_from_row

_T = TypeVar("_T")

METRICS = "metrics.jsonl"
EVALUATION_DROPS = "eval_dropped.json"  # what the last `stargate eval` of this folder had to drop
# How long rows are gathered before they are synced together. A turn takes seconds, so nobody waits
# for this.
_GATHER_SECONDS = 0.05
# In a steady stream rows are gathered longer, so that writing takes this share of a core per table
# (a part costs some milliseconds whatever is in it), but not longer than so many times the above.
_WRITING_SHARE = 0.03
_MAX_GATHERING = 6
# Rows of one row group of a merged file: with one per part, footers would outgrow the data.
_GROUP_ROWS = 4096
# In a merged file's metadata: parts below this number are in it.
_NEXT_PART = "stargate.next_part"
_PART = re.compile(r"part-(\d+)\.parquet")
# Folders of a run directory that others write: W&B keeps links in its own.
_OF_OTHERS = frozenset({"wandb"})


@dataclass
class _Batch:
    rows: list[Row]
    durable: "asyncio.Future[None]"


class RunStore:
    """One run directory. `append` may be called from many coroutines of one event loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tables: dict[tuple[str, str], _Table] = {}

    async def append(self, scope: str, table: str, rows: Sequence[Row]) -> None:
        """Adds rows to a table of a scope ("t0"); they are on disk when this returns."""
        if not rows:
            return
        key = (scope, table)
        if key not in self._tables:
            self._tables[key] = _Table(self.root / scope / table, SCHEMAS[table])
        await self._tables[key].append(rows)

    def read(self, scope: str, table: str) -> Iterator[Row]:
        """All rows of a table, in the order in which they were finished.

        Nothing if there are none. Raises DataError, see `table_rows`.
        """
        yield from table_rows(self.root / scope / table)

    def records(self, scope: str, table: str, kind: type[_T]) -> Iterator[_T]:
        """The rows of a table whose columns are a record's fields, as such records."""
        return (record_from_row(kind, row) for row in self.read(scope, table))

    def num_rows(self, scope: str, table: str) -> int:
        """How many rows a table has."""
        return sum(read_metadata(file)[0] for file in table_files(self.root / scope / table))

    def compact(self, scope: str) -> None:
        """Merges the parts of every table of a finished scope into one file each."""
        for table in SCHEMAS:
            if (self.root / scope / table).is_dir():
                self._merge(scope, table, None)

    def keep(self, scope: str, table: str, wanted: Callable[[Row], bool]) -> int:
        """Keeps only the rows of a table that are `wanted`. Returns how many went away."""
        rows = list(self.read(scope, table))
        num_unwanted = sum(not wanted(row) for row in rows)
        if num_unwanted:
            self._merge(scope, table, wanted)
        return num_unwanted

    def _merge(self, scope: str, table: str, wanted: Callable[[Row], bool] | None) -> None:
        folder, schema = self.root / scope / table, SCHEMAS[table]
        self._tables.pop((scope, table), None)
        files = table_files(folder)
        merged = folder.with_suffix(".parquet")
        if files not in ([], [merged]) or (files and wanted is not None):
            next_part = _next_part(folder)

            def write(target: Path) -> None:
                batches = (
                    _conform(batch, schema, wanted)
                    for file in files
                    for batch in read_batches(file)
                )
                groups = _grouped(batches, schema, _GROUP_ROWS)
                write_parquet(target, schema, groups, {_NEXT_PART: str(next_part)})

            write_atomically(merged, write)
        remove_merged_parts(folder)

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        path = self.root / METRICS
        line = json.dumps(values, allow_nan=False) + "\n"
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. Raises DataError for one that is none.

        A last line without an end is what a process is writing, or was when it was killed: it does
        not count.
        """
        file = self.root / METRICS
        if not file.is_file():
            return []
        found = []
        with read_errors(file):
            text = file.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            if not line.endswith("\n"):
                break
            try:
                values = json.loads(line)
                values["event"]
            except (ValueError, RecursionError, TypeError, KeyError) as error:
                raise DataError(f"{file}:{number}: not a line of metrics: {error!r}") from error
            found.append(values)
        return found

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes RUN/name whole, or not at all."""
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        write_text(self.root / name, text)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """RUN/name as written by `write_json`; None if it is not there. Raises DataError."""
        return read_json(self.root / name)

    def damaged(self, scope: str) -> list[str]:
        """Names, from the run directory, of the files of a scope that were set aside."""
        found = entries_within(self.root / scope)
        return sorted(
            str(file.relative_to(self.root)) for file in found if ".damaged-" in file.name
        )


class _Table:
    """Part files of one table, with group commit:

    rows that arrive while others are being synced go together.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        self._gathering: _Batch | None = None  # rows that the next part will hold
        self._writing: asyncio.Task[None] | None = None
        make_folder(folder)
        self._number = _next_part(folder)

    async def append(self, rows: Sequence[Row]) -> None:
        if self._gathering is None:
            self._gathering = _Batch([], asyncio.get_running_loop().create_future())
        batch = self._gathering
        batch.rows.extend(rows)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_batches())
        # Shielded: one cancelled waiter must not cancel what the others wait for.
        await asyncio.shield(batch.durable)

    async def _write_batches(self) -> None:
        pause = _GATHER_SECONDS
        while self._gathering is not None:
            await asyncio.sleep(pause)
            batch, self._gathering = self._gathering, None
            started = time.perf_counter()
            try:
                await asyncio.to_thread(self._write_part, batch.rows)
            except Exception as error:  # every waiter must hear it, and none may wait for ever
                batch.durable.set_exception(error)
            else:
                batch.durable.set_result(None)
            wanted = (time.perf_counter() - started) / _WRITING_SHARE
            pause = min(max(_GATHER_SECONDS, wanted), _MAX_GATHERING * _GATHER_SECONDS)

    def _write_part(self, rows: list[Row]) -> None:
        path = self._folder / f"part-{self._number:06d}.parquet"
        batches = pa.Table.from_pylist(rows, schema=self._schema).to_batches()
        write_atomically(path, lambda target: write_parquet(target, self._schema, batches))
        self._number += 1


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Values of another shape than a run writes become DataError, which names the place."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{place}: not what a run writes: it has no {error}") from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{place}: not what a run writes: {one_line(error)}") from error


def parse(kind: type[_T], values: Any) -> _T:
    """JSON as a record; keys that it does not have are passed over.

    Raises ValueError, in one line, for another shape and for a number that is not finite.
    """
    try:
        found: _T = _adapter(kind).validate_python({"": values})[""]  # type: ignore[arg-type]  # hashable
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"][1:]))
        raise ValueError(f"{place}: {first['msg']}") from None
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # Within a dict, because pydantic takes no config for a dataclass alone, but hands it down.
    return TypeAdapter(dict[str, kind], config=ConfigDict(allow_inf_nan=False))


def versions_of(root: Path, prefix: str) -> list[int]:
    """t of every folder ROOT/PREFIX<t>, in order; prefixes are "t" and "eval-m"."""
    names = (path.name for path in root.iterdir() if path.is_dir())
    found = (re.fullmatch(rf"{prefix}(0|[1-9]\d*)", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def load_run_config(run_dir: Path) -> RunConfig:
    """The resolved config of a run. Raises DataError if the folder is no run directory, or holds
    what no run writes (`require_plain`): it may come from others.
    """
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: no such run directory")
    require_plain(run_dir, _OF_OTHERS)
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise DataError(
            f"{run_dir}: not a run directory: it has no config.yaml; give the folder that "
            "`stargate run` named"
        )
    return load_config(file)


def table_files(folder: Path) -> list[Path]:
    """The files of one table: the merged one, then those parts that are not in it, in order."""
    merged = folder.with_suffix(".parquet")
    parts = _parts(folder)
    if not merged.is_file():
        return list(parts.values())
    first = _first_unmerged(merged) if parts else 0
    return [merged, *(file for number, file in parts.items() if number >= first)]


def table_rows(folder: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """All rows of a table, or these columns of them, which must hold those of its key.

    Raises DataError for a damaged file, a number that is not finite, and a row that is there twice
    (it would count twice).
    """
    key_columns = KEYS.get(folder.name, ())
    seen: set[tuple[Any, ...]] = set()
    for file in table_files(folder):
        for row in read_rows(file, columns, finite=True):
            key = tuple(row.get(column) for column in key_columns)
            if key in seen:
                named = " ".join(str(value) for value in key if value is not None)
                raise DataError(f"{file}: {named} is there twice")
            if key:
                seen.add(key)
            yield row


def remove_merged_parts(folder: Path) -> int:
    """Deletes the parts of a table that its merged file holds, and the folder once it is empty.

    Returns how many parts.
    """
    merged = folder.with_suffix(".parquet")
    if not folder.is_dir() or not merged.is_file():
        return 0
    parts = _parts(folder)
    first = _first_unmerged(merged)
    doomed = [file for number, file in parts.items() if number < first]
    with disk_errors(folder):
        for file in doomed:
            file.unlink()
        if not entries(folder):  # else there are unmerged parts, or some that were set aside
            folder.rmdir()
            sync(folder.parent)
    return len(doomed)


def _next_part(folder: Path) -> int:
    """The number of the next part: above all that are there or were merged."""
    merged = folder.with_suffix(".parquet")
    first = _first_unmerged(merged) if merged.is_file() else 0
    return max([first, *(number + 1 for number in _parts(folder))])


def _parts(folder: Path) -> dict[int, Path]:
    """Part files by number, in order."""
    files = ((_PART.fullmatch(file.name), file) for file in entries(folder))
    return dict(sorted((int(name[1]), file) for name, file in files if name))


def _first_unmerged(merged: Path) -> int:
    """The number from which on parts are not in a merged file; 0 for one of an earlier version."""
    return int(read_metadata(merged)[1].get(_NEXT_PART, 0))


def _grouped(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, num_rows: int
) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at least `num_rows`, the last one excepted."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= num_rows:
            yield from pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()
            waiting = []
    if waiting:
        yield from pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()


def _conform(
    batch: pa.RecordBatch, schema: pa.Schema, wanted: Callable[[Row], bool] | None
) -> pa.RecordBatch:
    """A batch with all columns (an earlier version may have had fewer) and its wanted rows."""
    if wanted is not None:
        batch = batch.filter(pa.array([wanted(row) for row in batch.to_pylist()], pa.bool_()))
    if batch.schema.names == schema.names:
        return batch
    known = set(batch.schema.names)
    columns = [
        batch.column(field.name) if field.name in known else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
