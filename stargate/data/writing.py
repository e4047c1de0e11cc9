"""Writes datasets whole or not at all: a folder is filled under a temporary name, synced, renamed.

File names come from this module and from ids of splits ([A-Za-z0-9._-], not starting with a dot),
never from texts, so nothing can be written outside the folder that was named.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stargate.data.dataset import Dataset
from stargate.errors import DataError
from stargate.types import Persona, Task

Row = dict[str, Any]

KINDS = ("tasks", "personas", "golds")
# Rows that are held in memory before they are written.
_BATCH = 2000
# What a folder may hold that --force replaces: anything else was not written by us.
_OURS = frozenset(
    {"import-report.json", "dataset_dict.json", "build-report.json"}
    | {f"{kind}.{end}" for kind in KINDS for end in ("jsonl", "parquet")}
)


@dataclass(frozen=True, slots=True)
class GoldRecord:
    """One gold as it is written."""

    task_id: str
    persona_id: str
    text: str
    facts_used: tuple[int, ...] = ()


def task_row(task: Task) -> Row:
    """The row of a task, every column filled."""
    return {
        "id": task.id,
        "text": task.text,
        "split": task.split,
        "needs_question": task.needs_question,
    }


def persona_row(persona: Persona, origins: tuple[str, ...] = ()) -> Row:
    """The row of a persona, every column filled."""
    return {
        "id": persona.id,
        "name": persona.name,
        "text": persona.text,
        "split": persona.split,
        "facts": list(persona.facts),
        "fact_origins": list(origins),
    }


def gold_row(gold: GoldRecord) -> Row:
    """The row of a gold, every column filled."""
    return {
        "task_id": gold.task_id,
        "persona_id": gold.persona_id,
        "text": gold.text,
        "facts_used": list(gold.facts_used),
    }


def dataset_rows(dataset: Dataset, kind: str) -> Iterator[Row]:
    """The rows of a dataset's tasks, personas or golds."""
    if kind == "tasks":
        yield from map(task_row, dataset.tasks.values())
    elif kind == "personas":
        for persona in dataset.personas.values():
            yield persona_row(persona, dataset.fact_origins.get(persona.id, ()))
    else:
        for (task_id, persona_id), (text, facts_used) in dataset.golds.items():
            yield gold_row(GoldRecord(task_id, persona_id, text, facts_used))


def write_jsonl(file: Path, rows: Iterable[Row]) -> int:
    """Writes rows as JSON lines, without columns at their default. Returns how many; no rows, no
    file.
    """
    count = 0
    lines: list[str] = []
    for row in rows:
        count += 1
        kept = {k: v for k, v in row.items() if v != [] and (k, v) != ("needs_question", True)}
        lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
        if len(lines) == _BATCH:
            _append(file, lines)
    if lines:
        _append(file, lines)
    return count


def _append(file: Path, lines: list[str]) -> None:
    with file.open("a", encoding="utf-8", newline="\n") as out:
        out.writelines(lines)
    lines.clear()


def write_parquet(file: Path, kind: str, rows: Iterable[Row]) -> int:
    """Writes rows of `kind` as Parquet. Returns how many; no rows, no file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(kind)
    count = 0
    writer = None
    for batch in _batches(rows):
        writer = writer or pq.ParquetWriter(file, schema)
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        count += len(batch)
    if writer is not None:
        writer.close()
    return count


def arrow_schema(kind: str) -> Any:
    """The Arrow schema of the tasks, personas or golds."""
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    columns = {
        "tasks": [("id", text), ("text", text), ("split", text), ("needs_question", pa.bool_())],
        "personas": [
            *(("id", text), ("name", text), ("text", text), ("split", text)),
            *(("facts", texts), ("fact_origins", texts)),
        ],
        "golds": [
            *(("task_id", text), ("persona_id", text), ("text", text)),
            ("facts_used", pa.list_(pa.int32())),
        ],
    }
    return pa.schema(columns[kind])


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def new_folder(out: Path, *, force: bool = False, source: Path | None = None) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `out` when the block ends well.

    Raises DataError at once when `out` exists, unless it is empty or, with `force`, holds nothing
    but a dataset. `source` is what is read meanwhile: it must not lie in `out`.
    """
    _check_target(out, force, source)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{out}: can't be written: {error.strerror}") from error
    try:
        yield temporary
        _sync(temporary)
        _replace(temporary, out)
    except OSError as error:
        raise DataError(f"{out}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(out: Path, force: bool, source: Path | None) -> None:
    if out.name in ("", "..") or out.is_symlink():
        raise DataError(f"{out}: give the name of a new folder, not a link or a parent folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; give the name of a new folder")
    inside = sorted(out.iterdir())
    if not inside:
        return
    if not force:
        raise DataError(f"{out}: exists already; choose another folder, or replace it with --force")
    if source is not None and source.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out}: --force would delete what is read ({source})")
    foreign = [entry for entry in inside if not _is_ours(entry)]
    if foreign:
        raise DataError(
            f"{out}: holds {foreign[0].name}, which is no part of a dataset: --force does not "
            "delete it; choose another folder"
        )


def _is_ours(entry: Path) -> bool:
    if entry.is_symlink():
        return False
    if entry.is_dir():
        return entry.name in KINDS and (entry / "dataset_info.json").is_file()
    return entry.name in _OURS or entry.suffix == ".jsonl"


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(temporary: Path, out: Path) -> None:
    """Moves the finished folder into place; what stood there is moved aside first, then deleted."""
    aside = out.with_name(f".{out.name}.{os.getpid()}.old")
    had_one = out.exists()
    if had_one:
        out.rename(aside)
    try:
        temporary.rename(out)
    except OSError:
        if had_one:
            aside.rename(out)
        raise
    if had_one:
        shutil.rmtree(aside)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
