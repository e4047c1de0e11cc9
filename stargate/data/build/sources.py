"""Tasks and personas that are there already: read, cleaned and shared out over the splits.

    file, `datasets` folder or hub -> RawTask -> data.cleaning.Cleaner -> Task
    file or dataset folder         -> RawPersona -> Cleaner            -> Persona

Everything that the Cleaner mends or leaves out is in its ImportReport.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from stargate.data.build.config import FilePersonas, FileTasks, HubTasks
from stargate.data.cleaning import Cleaner
from stargate.data.dataset import open_dataset
from stargate.data.findings import ImportReport
from stargate.data.importers import TaskSource, detect_format, raw_tasks, records
from stargate.data.reading import (
    Found,
    file_rows,
    hf_tables,
    jsonl_rows,
    require_datasets,
    undecoded,
)
from stargate.data.rows import RawPersona, RawTask
from stargate.data.writing import dataset_rows
from stargate.errors import DataError, one_line
from stargate.types import Persona, Task


def read_build_tasks(source: FileTasks | HubTasks, cleaner: Cleaner) -> dict[str, Task]:
    """The tasks of all splits, by id, no text twice. Raises DataError."""
    if isinstance(source, HubTasks):
        where, rows = source.name, _hub_rows(source)
    else:
        where, rows = str(source.path), _task_rows(source, cleaner.report)
    wanted = TaskSource(
        source.column,
        tuple(_as_counts(source.rows)),
        column_hint="name it in tasks.column",
        splits_hint="share the rows out with tasks.rows",
    )
    tasks = cleaner.tasks(_numbered(raw_tasks(rows, cleaner.report, wanted)))
    missing = [split for split in source.rows if not any(t.split == split for t in tasks.values())]
    if missing or not tasks:
        raise DataError(
            f"{where}: no usable task{f' for split {missing[0]!r}' if missing else ''}; "
            "see tasks.rows and tasks.column in the build config"
        )
    return tasks


def read_build_personas(source: FilePersonas, cleaner: Cleaner) -> dict[str, Persona]:
    """The personas of a file or dataset folder, by id; those without facts got their sentences."""
    personas = cleaner.personas(_raw_personas(source, cleaner.report))
    if not personas:
        raise DataError(f"{source.path}: no usable persona")
    return personas


def _task_rows(source: FileTasks, report: ImportReport) -> Found:
    ending = source.path.suffix.lower().lstrip(".")
    chosen = ending if ending in ("json", "txt") else detect_format(source.path)
    if chosen == "hf":
        return hf_tables(source.path).get("tasks", ())
    return file_rows(source.path, chosen, report)


def _as_counts(ranges: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str | None, int]]:
    """[first, end) of each split as numbers of rows, in order; those between them have no split."""
    reached = 0
    for split, (first, end) in sorted(ranges.items(), key=lambda item: item[1]):
        yield None, first - reached
        yield split, end - first
        reached = end


def _numbered(rows: Iterator[RawTask]) -> Iterator[RawTask]:
    """Rows without an id get one from their place in their split."""
    counted: Counter[str] = Counter()
    for raw in rows:
        number = counted[str(raw.split)]
        counted[str(raw.split)] += 1
        missing = raw.id in (None, "")
        yield replace(raw, id=f"{raw.split}-task-{number}") if missing else raw


def _raw_personas(source: FilePersonas, report: ImportReport) -> Iterator[RawPersona]:
    rows, ranges = _persona_rows(source.path, report), source.rows.items()
    in_folder = source.path.is_dir()  # there every persona names its split
    counted: Counter[str] = Counter()
    for index, (where, row) in enumerate(records(rows, report, texts=True)):
        split = row.get("split")
        if ranges and not in_folder:
            split = next((s for s, (first, end) in ranges if first <= index < end), None)
            if split is None:
                report.add("row_beyond_splits", where)
                continue
        if split is None:
            raise DataError(f"{where}: no split; share the rows out with personas.rows")
        id = row.get("id", f"{split}-persona-{counted[str(split)]}")
        counted[str(split)] += 1
        others = (row.get(name) for name in ("name", "facts", "fact_origins"))
        yield RawPersona(where, id, row.get("text"), split, *others)


def _persona_rows(path: Path, report: ImportReport) -> Found:
    if path.is_dir():
        rows = dataset_rows(open_dataset(path), "personas")
        return ((f"{path.name} {row['id']}", row) for row in rows)
    ending = path.suffix.lower()
    if ending == ".jsonl":
        return jsonl_rows(path, path.name)
    if ending == ".json":
        return file_rows(path, "json", report)
    raise DataError(f"{path}: personas.path must be .jsonl, .json or a dataset folder")


def _hub_rows(source: HubTasks) -> Found:
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
    for number, row in enumerate(islice(undecoded(source.name, loaded), last)):
        yield f"{source.name} row {number}", row
