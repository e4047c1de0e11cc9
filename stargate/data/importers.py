"""Reads data of other shapes into a dataset folder.

    star-gate      prompts/{A,B,test}.json, personas/{..}.json + {..}_NAMES.json,
                   gold-responses/{..}.json: the authors' own layout
    hf             a folder written by `datasets` (save_to_disk), or a data set as the hub has it
                   (data/train-00000-of-00001.parquet): tasks, personas and golds, or tasks only
    jsonl parquet  a folder with tasks, personas and golds; or one file with tasks only
    csv            one file with tasks only
    in3            one file of IN3: vague tasks with the details that are missing, and clear ones

What is wrong in the data is reported and never stops the import; a file that can't be read at all
is an error.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

from stargate.data.cleaning import Cleaner
from stargate.data.findings import ImportReport
from stargate.data.in3 import DEFAULT_SPLITS, In3Source, read_in3
from stargate.data.official import read_official
from stargate.data.reading import KINDS, Found, file_rows, hf_tables, hub_shards
from stargate.data.rows import RawGold, RawPersona, RawTask
from stargate.data.writing import dataset_rows, new_folder, write_json, write_jsonl
from stargate.errors import DataError

FORMATS = ("star-gate", "hf", "jsonl", "parquet", "csv", "in3")
# Where a task's text may stand in somebody else's data, in the order of preference.
TEXT_COLUMNS = ("text", "prompt", "task", "question", "instruction", "query", "request")
_COLUMNS = {
    kind: [field.name for field in fields(raw) if field.name != "where"]
    for kind, raw in (("tasks", RawTask), ("personas", RawPersona), ("golds", RawGold))
}


@dataclass(frozen=True, slots=True)
class TaskSource:
    """How to read tasks of other people: `column` holds the text (None: the first known name);
    `splits` are (split, number of rows) in the order of the rows, the number None meaning all that
    is left, the split None rows that are not used. The hints say how the user gives them.
    """

    column: str | None = None
    splits: Sequence[tuple[str | None, int | None]] = ()
    column_hint: str = "name it with --column"
    splits_hint: str = (
        "share the rows out, e.g. --splits A=250,B=250,test=50, or put all in one: --splits A"
    )
    in3: In3Source = field(default_factory=In3Source)


def import_dataset(
    source: Path,
    out: Path,
    source_format: str | None = None,
    *,
    tasks: TaskSource | None = None,
    keep_split: str = "test",
    force: bool = False,
) -> ImportReport:
    """Imports `source` into the new dataset folder `out`. Raises DataError."""
    chosen = source_format or detect_format(source)
    report = ImportReport(source=str(source), source_format=chosen)
    with new_folder(out, force=force, source=source) as folder:
        raw_tasks, raw_personas, raw_golds = _open(source, chosen, report, tasks or TaskSource())
        cleaner = Cleaner(report, keep_split)
        tasks_found, personas_found = cleaner.tasks(raw_tasks), cleaner.personas(raw_personas)
        if not tasks_found and not personas_found:
            raise DataError(f"{source}: no usable task or persona{_why(report)}")
        cleaner.golds(raw_golds)
        for kind in KINDS:
            write_jsonl(folder / f"{kind}.jsonl", dataset_rows(cleaner.data, kind))
        write_json(folder / "import-report.json", report.to_json())
    return report


def _why(report: ImportReport) -> str:
    if not report.counts:
        return ""
    kind, count = report.counts.most_common(1)[0]
    return f" ({kind}: {count}, e.g. {report.listed[kind][0].where})"


def detect_format(source: Path) -> str:
    """The format of a file or folder by what it holds. Raises DataError naming the known ones."""
    if source.is_file():
        ending = source.suffix.lower().lstrip(".")
        if ending in ("jsonl", "parquet", "csv"):
            return ending
    elif source.is_dir():
        if any((source / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return "hf"
        if hub_shards(source):
            return "hf"
        for ending in ("jsonl", "parquet"):
            if any((source / f"{kind}.{ending}").is_file() for kind in KINDS):
                return ending
        if any((source / name).is_dir() for name in ("prompts", "personas", "gold-responses")):
            return "star-gate"
    else:
        raise DataError(f"{source}: no such file or folder")
    raise DataError(
        f"{source}: not recognised; give --format, one of {', '.join(FORMATS)} "
        "(star-gate: a folder with prompts/ and personas/)"
    )


def _open(
    source: Path, chosen: str, report: ImportReport, tasks: TaskSource
) -> tuple[Iterable[RawTask], Iterable[RawPersona], Iterable[RawGold]]:
    if chosen == "star-gate":
        return read_official(source, report)
    if chosen == "in3":
        if not source.is_file():
            raise DataError(f"{source}: IN3 is one file of JSON lines, e.g. train.jsonl")
        splits = _row_splits(tasks.splits) if tasks.splits else cycle(DEFAULT_SPLITS)
        return read_in3(source, report, tasks.in3, splits)
    if chosen == "hf":
        tables = hf_tables(source)
    elif source.is_file():
        tables = {"tasks": file_rows(source, chosen, report)}
    elif source.is_dir() and chosen in ("jsonl", "parquet"):
        files = {kind: source / f"{kind}.{chosen}" for kind in KINDS}
        for kind, file in files.items():
            if not file.is_file():
                report.add("missing_part", f"{kind}.{chosen}")
        tables = {k: file_rows(f, chosen, report) for k, f in files.items() if f.is_file()}
    else:
        raise DataError(f"{source}: no such {chosen} file")
    return (
        raw_tasks(tables.get("tasks", ()), report, tasks),
        (RawPersona(*row) for row in _raw_rows(tables, "personas", report)),
        (RawGold(*row) for row in _raw_rows(tables, "golds", report)),
    )


def raw_tasks(rows: Found, report: ImportReport, source: TaskSource) -> Iterator[RawTask]:
    """Tasks of rows that are texts or records, shared out over the splits. Raises DataError."""
    splits = _row_splits(source.splits)
    column = source.column
    for where, row in records(rows, report, texts=True):
        if column is None or (source.column is None and column not in row):
            column = next((name for name in TEXT_COLUMNS if name in row), None)
        if column is None or column not in row:
            raise DataError(
                f"{where}: no column with the task's text; got {sorted(map(str, row))}; "
                f"{source.column_hint}"
            )
        split = next(splits, None) if source.splits else row.get("split")
        if source.splits and split is None:
            report.add("row_beyond_splits", where)
            continue
        if split is None:
            raise DataError(f"{where}: no split; {source.splits_hint}")
        _note_columns(row, (*_COLUMNS["tasks"], column), "tasks", report)
        yield RawTask(
            where, row.get("id"), row[column], split, row.get("needs_question"), row.get("gold")
        )


def _row_splits(splits: Sequence[tuple[str | None, int | None]]) -> Iterator[str | None]:
    for split, count in splits:
        yield from repeat(split) if count is None else repeat(split, count)


def _raw_rows(
    tables: Mapping[str, Found], kind: str, report: ImportReport
) -> Iterator[tuple[Any, ...]]:
    """(where, *columns) of personas or golds."""
    for where, row in records(tables.get(kind, ()), report):
        _note_columns(row, _COLUMNS[kind], kind, report)
        yield where, *map(row.get, _COLUMNS[kind])


def records(
    rows: Found, report: ImportReport, *, texts: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows that are records; with `texts` also those that are a text alone."""
    for where, row in rows:
        if texts and isinstance(row, str):
            yield where, {"text": row}
        elif isinstance(row, Mapping):
            yield where, row
        else:
            report.add("row_malformed", where, f"a {type(row).__name__}, not a record")


def _note_columns(
    row: Mapping[str, Any], known: Sequence[str], kind: str, report: ImportReport
) -> None:
    """Once per column: 25,500 rows have the same ones."""
    noted = [case.where for case in report.listed.get("unknown_column", ())]
    for name in row:
        if name not in known and f"{kind}: {name}" not in noted:
            report.add("unknown_column", f"{kind}: {name}")


def parse_splits(text: str) -> tuple[tuple[str, int | None], ...]:
    """ "A=250,B=250,test=50" -> (("A", 250), ...); a name alone takes all rows that are left.

    Raises DataError.
    """
    splits: list[tuple[str, int | None]] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:=\s*(\d+)\s*)?", part)
        if found is None:
            raise DataError(
                f"--splits: expected NAME=COUNT, e.g. A=250,B=250,test=50, got {part!r}"
            )
        splits.append((found[1], None if found[2] is None else int(found[2])))
    names = [name for name, _ in splits]
    if len(set(names)) < len(names):
        raise DataError(f"--splits: a split is named twice, got {text!r}")
    if any(count is None for _, count in splits[:-1]):
        raise DataError(f"--splits: only the last split can be without a count, got {text!r}")
    return tuple(splits)
