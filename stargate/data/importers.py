"""Reads data of other shapes into a dataset folder.

    star-gate      prompts/{A,B,test}.json, personas/{..}.json + {..}_NAMES.json,
                   gold-responses/{..}.json: the authors' own layout
    hf             a folder written by `datasets` (save_to_disk): tasks, personas and golds, or
                   tasks only
    jsonl parquet  a folder with tasks, personas and golds; or one file with tasks only
    csv            one file with tasks only

What is wrong in the data is reported and never stops the import; a file that can't be read at all
is an error.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stargate.data.blemishes import ImportReport, write_json
from stargate.data.cleaning import Cleaner, RawGold, RawPersona, RawTask
from stargate.data.official import read_official
from stargate.data.writing import (
    KINDS,
    Row,
    gold_row,
    new_folder,
    persona_row,
    task_row,
    write_jsonl,
)
from stargate.errors import DataError, one_line

FORMATS = ("star-gate", "hf", "jsonl", "parquet", "csv")
# Where a task's text may stand in somebody else's data, in the order of preference.
TEXT_COLUMNS = ("text", "prompt", "task", "question", "instruction", "query", "request")
_COLUMNS = {
    "tasks": {"id", "text", "split", "needs_question"},
    "personas": {"id", "name", "text", "split", "facts", "fact_origins"},
    "golds": {"task_id", "persona_id", "text", "facts_used"},
}


@dataclass(frozen=True, slots=True)
class TaskSource:
    """How to read tasks of other people: `column` holds the text (None: the first known name);
    `splits` are (split, number of rows) in the order of the rows, None meaning all that is left.
    """

    column: str | None = None
    splits: tuple[tuple[str, int | None], ...] = ()


# Rows as found, with where they stood: columns, or a text alone.
Found = Iterable[tuple[str, Any]]


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
    report = ImportReport(str(source), chosen)
    with new_folder(out, force=force, source=source) as folder:
        raw_tasks, raw_personas, raw_golds = _open(source, chosen, report, tasks or TaskSource())
        cleaner = Cleaner(report, keep_split)
        kept_tasks = cleaner.tasks(raw_tasks)
        kept_personas = cleaner.personas(raw_personas)
        if not kept_tasks and not kept_personas:
            raise DataError(f"{source}: no usable task or persona{_why(report)}")
        write_jsonl(folder / "tasks.jsonl", map(task_row, kept_tasks.values()))
        origins = cleaner.fact_origins
        people = (persona_row(p, origins.get(p.id, ())) for p in kept_personas.values())
        write_jsonl(folder / "personas.jsonl", people)
        write_jsonl(folder / "golds.jsonl", map(gold_row, cleaner.golds(raw_golds)))
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
    if chosen == "hf":
        tables = _hf_tables(source)
    elif source.is_file():
        tables = {"tasks": _file_rows(source, chosen, report)}
    elif source.is_dir() and chosen in ("jsonl", "parquet"):
        files = {kind: source / f"{kind}.{chosen}" for kind in KINDS}
        for kind, file in files.items():
            if not file.is_file():
                report.add("missing_part", f"{kind}.{chosen}")
        tables = {k: _file_rows(f, chosen, report) for k, f in files.items() if f.is_file()}
    else:
        raise DataError(f"{source}: no such {chosen} file")
    return (
        _raw_tasks(tables.get("tasks", ()), report, tasks),
        _raw_personas(tables.get("personas", ()), report),
        _raw_golds(tables.get("golds", ()), report),
    )


def read_tasks(source: Path, report: ImportReport, tasks: TaskSource) -> Iterator[RawTask]:
    """The tasks of one file or Hugging Face folder, one at a time. Raises DataError."""
    chosen = detect_format(source)
    found = _hf_tables(source).get("tasks", ()) if chosen == "hf" else None
    yield from _raw_tasks(
        _file_rows(source, chosen, report) if found is None else found, report, tasks
    )


def _raw_tasks(rows: Found, report: ImportReport, source: TaskSource) -> Iterator[RawTask]:
    splits = _row_splits(source.splits)
    column = source.column
    for where, row in rows:
        if isinstance(row, str):
            row = {"text": row}
        if not _is_record(row, where, report):
            continue
        if column is None or (source.column is None and column not in row):
            column = next((name for name in TEXT_COLUMNS if name in row), None)
        if column is None or column not in row:
            raise DataError(
                f"{where}: no column with the task's text; got {sorted(map(str, row))}; "
                "name it with --column"
            )
        split = next(splits, None) if source.splits else row.get("split")
        if source.splits and split is None:
            report.add("row_beyond_splits", where)
            continue
        if split is None:
            raise DataError(
                f"{where}: no split; share the rows out, e.g. --splits A=250,B=250,test=50, "
                "or put all in one: --splits A"
            )
        _note_columns(row, _COLUMNS["tasks"] | {column}, "tasks", report)
        yield RawTask(where, row.get("id"), row[column], split, row.get("needs_question"))


def _row_splits(splits: tuple[tuple[str, int | None], ...]) -> Iterator[str]:
    for split, count in splits:
        if count is None:
            while True:
                yield split
        for _ in range(count):
            yield split


def _raw_personas(rows: Found, report: ImportReport) -> Iterator[RawPersona]:
    for where, row in rows:
        if _is_record(row, where, report):
            _note_columns(row, _COLUMNS["personas"], "personas", report)
            yield RawPersona(
                where,
                row.get("id"),
                row.get("text"),
                row.get("split"),
                row.get("name"),
                row.get("facts"),
                row.get("fact_origins"),
            )


def _raw_golds(rows: Found, report: ImportReport) -> Iterator[RawGold]:
    for where, row in rows:
        if _is_record(row, where, report):
            _note_columns(row, _COLUMNS["golds"], "golds", report)
            yield RawGold(
                where,
                row.get("task_id"),
                row.get("persona_id"),
                row.get("text"),
                row.get("facts_used"),
            )


def _is_record(row: Any, where: str, report: ImportReport) -> bool:
    if isinstance(row, Mapping):
        return True
    report.add("row_malformed", where, f"a {type(row).__name__}, not a record")
    return False


def _note_columns(row: Mapping[str, Any], known: set[str], kind: str, report: ImportReport) -> None:
    for name in row:
        # Once per column: 25,500 rows have the same ones.
        if name not in known and not any(
            blemish.where == f"{kind}: {name}"
            for blemish in report.listed.get("unknown_column", ())
        ):
            report.add("unknown_column", f"{kind}: {name}")


def _file_rows(file: Path, chosen: str, report: ImportReport) -> Found:
    if chosen == "csv":
        return _csv_rows(file, report)
    if chosen == "parquet":
        return _parquet_rows(file)
    if chosen == "jsonl":
        return _jsonl_rows(file, report)
    raise DataError(f"{file}: a single file must be jsonl, parquet or csv, got format {chosen}")


def _jsonl_rows(file: Path, report: ImportReport) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(file), start=1):
        where = f"{file.name}:{number}"
        if not line.strip():
            continue
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            report.add("row_malformed", where, f"not valid JSON: {detail}")


def _csv_rows(file: Path, report: ImportReport) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(_lines(file), strict=True)
    try:
        if not (names := reader.fieldnames):
            raise DataError(f"{file}: empty: a CSV file begins with a line of column names")
        for row in reader:
            where = f"{file.name}:{reader.line_num}"
            if None in row or None in row.values():
                report.add("row_malformed", where, f"not {len(names)} columns")
            else:
                yield where, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not valid CSV: {error}") from error


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not valid UTF-8: {error.reason}") from error
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{file.name} row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: can't be read: {' '.join(str(error).split())}") from error


def _hf_tables(folder: Path) -> dict[str, Found]:
    """Tasks, personas and golds, or else one data set of tasks whose parts are the splits."""
    datasets = require_datasets()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    _require_names_inside(folder)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # `datasets` raises many types for a folder it can't read
        detail = one_line(error)
        raise DataError(f"{folder}: `datasets` can't load it: {detail}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return {"tasks": _hf_rows("row", loaded)}
    if set(loaded) & set(KINDS):
        return {kind: _hf_rows(f"{kind} row", loaded[kind]) for kind in KINDS if kind in loaded}
    return {"tasks": _hf_splits(loaded)}


def _require_names_inside(folder: Path) -> None:
    """`datasets` follows the names in its JSON files anywhere, so these must be plain names.

    Raises DataError. What else is wrong with these files `datasets` itself says.
    """
    splits = _names_in(folder / "dataset_dict.json", "splits")
    named = {folder / "dataset_dict.json": splits}
    for part in (folder, *(folder / name for name in splits)):
        named[part / "state.json"] = _names_in(part / "state.json", "_data_files")
    for file, names in named.items():
        for name in names:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise DataError(f"{file}: names {name!r}, which is not a name in its own folder")


def _names_in(file: Path, key: str) -> list[str]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))[key]
        names = [e["filename"] if isinstance(e, dict) else e for e in entries]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str)]


def _hf_rows(name: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, start=1):
        yield f"{name} {number}", row


def _hf_splits(parts: Mapping[str, Iterable[Row]]) -> Iterator[tuple[str, Row]]:
    for split, rows in parts.items():
        for where, row in _hf_rows(f"{split} row", rows):
            yield where, {"split": split, **row}


def require_datasets() -> Any:
    """The package `datasets`, without its progress bars. Raises DataError saying how to get it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"needs the package `datasets`: pip install datasets ({error})") from error
    datasets.disable_progress_bars()
    return datasets


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
