"""Tasks and personas that are there already: read, cleaned and shared out over the splits.

    file, `datasets` folder or hub -> RawTask -> data.cleaning.Cleaner -> Task
    file or dataset folder         -> RawPersona -> Cleaner            -> Persona

Everything that the Cleaner mends or leaves out is in its ImportReport.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stargate.data.blemishes import ImportReport
from stargate.data.build.config import FilePersonas, FileTasks, HubTasks
from stargate.data.cleaning import Cleaner, RawPersona, RawTask
from stargate.data.dataset import open_dataset
from stargate.data.importers import TEXT_COLUMNS, TaskSource, read_tasks, require_datasets
from stargate.errors import DataError, one_line
from stargate.types import Persona, Task

_Ranges = Mapping[str, tuple[int, int]]
_Found = Iterator[tuple[str, Any]]


def read_build_tasks(source: FileTasks | HubTasks, cleaner: Cleaner) -> dict[str, Task]:
    """The tasks of all splits, by id, no text twice. Raises DataError."""
    if isinstance(source, HubTasks):
        where, raw = source.name, _tasks_of(_hub_rows(source), source, cleaner.report)
    else:
        where, raw = str(source.path), _file_tasks(source, cleaner.report)
    tasks = cleaner.tasks(_numbered(raw))
    missing = [split for split in source.rows if not any(t.split == split for t in tasks.values())]
    if missing or not tasks:
        raise DataError(
            f"{where}: no usable task{f' for split {missing[0]!r}' if missing else ''}; "
            "see tasks.rows and tasks.column in the build config"
        )
    return tasks


def read_build_personas(source: FilePersonas, cleaner: Cleaner) -> dict[str, Persona]:
    """The personas of a file or dataset folder, by id; those without facts got their sentences."""
    path = source.path
    if path.is_dir():
        dataset = open_dataset(path)
        rows = (
            RawPersona(
                f"{path.name} {p.id}",
                *(p.id, p.text, p.split, p.name, list(p.facts) or None),
                list(dataset.fact_origins.get(p.id, ())) or None,
            )
            for p in dataset.personas.values()
        )
        personas = cleaner.personas(rows)
    else:
        personas = cleaner.personas(_file_personas(source, cleaner.report))
    if not personas:
        raise DataError(f"{path}: no usable persona")
    return personas


def _file_tasks(source: FileTasks, report: ImportReport) -> Iterator[RawTask]:
    ending = source.path.suffix.lower()
    if ending == ".json":
        yield from _tasks_of(_json_rows(source.path), source, report)
    elif ending == ".txt":
        yield from _tasks_of(_text_rows(source.path), source, report)
    else:
        try:
            yield from _read_tasks(source, report)
        except DataError as error:
            text = str(error).partition("; name it with --")[0].partition("; share the rows")[0]
            raise DataError(f"{text} (tasks.column, tasks.rows)") from error


def _read_tasks(source: FileTasks, report: ImportReport) -> Iterator[RawTask]:
    """Through the importer, which knows counts only: gaps between ranges are rows of no split."""
    splits: list[tuple[str, int | None]] = []
    end = 0
    for split, (first, after) in sorted(source.rows.items(), key=lambda item: item[1]):
        splits += [("", first - end), (split, after - first)]
        end = after
    for raw in read_tasks(source.path, report, TaskSource(source.column, tuple(splits))):
        if raw.split == "":
            report.add("row_beyond_splits", raw.where)
        else:
            yield raw


def _tasks_of(
    rows: Iterable[tuple[str, Any]], source: FileTasks | HubTasks, report: ImportReport
) -> Iterator[RawTask]:
    """Tasks of rows as found: a text alone, or columns."""
    for index, (where, row) in enumerate(rows):
        record = {"text": row} if isinstance(row, str) else row
        if not isinstance(record, Mapping):
            report.add("row_malformed", where, f"a {type(row).__name__}, not a record")
            continue
        column = source.column or next((name for name in TEXT_COLUMNS if name in record), None)
        if column is None or column not in record:
            raise DataError(
                f"{where}: no column {column or 'with the task'!r} (tasks.column); "
                f"got {sorted(map(str, record))}"
            )
        split = _split_of(index, record, source.rows, where, "tasks", report)
        if split is not None:
            text, needs = record[column], record.get("needs_question")
            yield RawTask(where, record.get("id"), text, split, needs)


def _file_personas(source: FilePersonas, report: ImportReport) -> Iterator[RawPersona]:
    file = source.path
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows}
    if file.suffix.lower() not in readers:
        raise DataError(f"{file}: personas.path must be .jsonl, .json or a dataset folder")
    counted: Counter[str] = Counter()
    for index, (where, row) in enumerate(readers[file.suffix.lower()](file)):
        record = {"text": row} if isinstance(row, str) else row
        if not isinstance(record, Mapping):
            report.add("row_malformed", where, f"a {type(row).__name__}, not a record")
            continue
        split = _split_of(index, record, source.rows, where, "personas", report)
        if split is not None:
            number = counted[str(split)]
            counted[str(split)] += 1
            yield RawPersona(
                where,
                record.get("id", f"{split}-persona-{number}"),
                *(record.get("text"), split, record.get("name"), record.get("facts")),
                record.get("fact_origins"),
            )


def _split_of(
    index: int, row: Mapping[str, Any], ranges: _Ranges, where: str, part: str, report: ImportReport
) -> Any:
    """The split of a row; None for one that no range has."""
    if not ranges:
        if row.get("split") is None:
            raise DataError(f"{where}: no split; share the rows out with {part}.rows")
        return row["split"]
    for split, (first, end) in ranges.items():
        if first <= index < end:
            return split
    report.add("row_beyond_splits", where)
    return None


def _numbered(rows: Iterable[RawTask]) -> Iterator[RawTask]:
    """Rows without an id get one from their place in their split."""
    counted: Counter[str] = Counter()
    for raw in rows:
        number = counted[str(raw.split)]
        counted[str(raw.split)] += 1
        id = f"{raw.split}-task-{number}" if raw.id in (None, "") else raw.id
        yield RawTask(raw.where, id, raw.text, raw.split, raw.needs_question)


def _hub_rows(source: HubTasks) -> _Found:
    datasets = require_datasets()
    last = max((end for _, end in source.rows.values()), default=None)
    try:
        loaded = datasets.load_dataset(
            source.name, source.subset, split=source.part, revision=source.revision
        )
    except Exception as error:  # `datasets` and its file systems raise many types
        detail = one_line(error)[:300]
        raise DataError(
            f"{source.name}: can't be loaded by `datasets` ({type(error).__name__}: {detail}); "
            "check the name and the network, or download it and use tasks: {type: file, path: ...}"
        ) from error
    if last is not None and len(loaded) < last:
        raise DataError(f"{source.name}: has {len(loaded)} rows, but tasks.rows goes to {last}")
    for number, row in enumerate(loaded):
        if last is not None and number >= last:
            return
        yield f"{source.name} row {number}", row


def _json_rows(file: Path) -> _Found:
    try:
        content = json.loads(_content(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, list):
        raise DataError(f"{file}: expected a JSON list, got {type(content).__name__}")
    for number, row in enumerate(content):
        yield f"{file.name}[{number}]", row


def _jsonl_rows(file: Path) -> _Found:
    for number, line in enumerate(_content(file).splitlines(), start=1):
        if line.strip():
            try:
                yield f"{file.name}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{number}: not valid JSON: {error}") from error


def _text_rows(file: Path) -> _Found:
    for number, line in enumerate(_content(file).splitlines(), start=1):
        if line.strip():
            yield f"{file.name}:{number}", line


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not valid UTF-8: {error.reason}") from error
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error
