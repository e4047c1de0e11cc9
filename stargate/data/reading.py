"""Rows of files in all formats, as they were found: (where, row) each.

A file that can't be read at all is a DataError that names it. A single row that can't be read goes
into the report of an import; where there is none it is a DataError, too.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from stargate.data.findings import ImportReport
from stargate.errors import DataError, one_line

KINDS = ("tasks", "personas", "golds")

Row = dict[str, Any]
# train-00000-of-00001.parquet; of earlier years train-00000-of-00001-a09b74b3ef9c3b56.parquet.
_SHARD = re.compile(
    r"(?P<part>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]{16})?\.parquet"
)
# Rows of a data set of `datasets` that are made into Python values at a time.
_BATCH_ROWS = 1000
# Rows with where they stood: columns, or a text alone, or what is neither.
Found = Iterable[tuple[str, Any]]


def file_rows(file: Path, ending: str, report: ImportReport) -> Found:
    """The rows of one file of the format `ending`. Raises DataError."""
    if ending == "jsonl":
        return jsonl_rows(file, file.name, report)
    if ending == "csv":
        return _csv_rows(file, report)
    if ending == "parquet":
        return parquet_rows(file, file.name)
    if ending == "json":
        return _json_rows(file)
    if ending == "txt":
        return _text_rows(file)
    raise DataError(f"{file}: a single file must be jsonl, parquet or csv, got format {ending}")


def jsonl_rows(
    file: Path, name: str, report: ImportReport | None = None
) -> Iterator[tuple[str, Any]]:
    """JSON lines; `name` is how the file is called in the place of a row."""
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            yield f"{name}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            if report is None:
                raise DataError(f"{file}:{number}: not valid JSON: {error}") from error
            detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            report.add("row_malformed", f"{name}:{number}", f"not valid JSON: {detail}")


def parquet_rows(file: Path, name: str) -> Iterator[tuple[str, Row]]:
    """Rows of a Parquet file; `name` is how the file is called in the place of a row."""
    from stargate.records.parquet import read_rows  # loads pyarrow

    for number, row in enumerate(read_rows(file), start=1):
        yield f"{name} row {number}", row


def json_content(
    file: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """A whole JSON file; `pairs_hook` is json's own `object_pairs_hook`. Raises DataError."""
    try:
        return json.loads("".join(_lines(file)), object_pairs_hook=pairs_hook)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number without end, brackets without end
        raise DataError(f"{file}: not valid JSON: {error}") from error


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    content = json_content(file)
    if not isinstance(content, list):
        raise DataError(f"{file}: expected a JSON list, got {type(content).__name__}")
    for number, row in enumerate(content):
        yield f"{file.name}[{number}]", row


def _text_rows(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield f"{file.name}:{number}", line.rstrip("\r\n")


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


def hf_tables(folder: Path) -> dict[str, Found]:
    """What `datasets` has saved, or the hub's files: tasks, personas and golds, or else one data
    set of tasks whose parts are the splits. Raises DataError.
    """
    if shards := hub_shards(folder):
        return _hub_tables(folder, shards)
    datasets = require_datasets()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    _require_names_inside(folder)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # `datasets` raises many types for a folder it can't read
        raise DataError(f"{folder}: `datasets` can't load it: {one_line(error)}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return {"tasks": _numbered(folder, "row", loaded)}
    if set(loaded) & set(KINDS):
        return {
            kind: _numbered(folder, f"{kind} row", loaded[kind]) for kind in KINDS if kind in loaded
        }
    return {
        "tasks": (
            (where, {"split": split, **row})
            for split, rows in loaded.items()
            for where, row in _numbered(folder, f"{split} row", rows)
        )
    }


def hub_shards(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """The Parquet files of a data set's snapshot, in order, by (folder of it, part):

    data/train-00000-of-00001.parquet, or CONFIG/train-00000-of-00001.parquet. Raises DataError
    where some of a part are missing.
    """
    found: dict[tuple[str, str], dict[int, Path]] = {}
    counts: dict[tuple[str, str], int] = {}
    for file in (*folder.glob("*.parquet"), *folder.glob("*/*.parquet")):
        if name := _SHARD.fullmatch(file.name):
            key = ("" if file.parent == folder else file.parent.name, name["part"])
            found.setdefault(key, {})[int(name["number"])] = file
            counts[key] = int(name["count"])
    for (parent, part), files in found.items():
        missing = sorted(set(range(counts[parent, part])) - files.keys())
        if missing:
            raise DataError(
                f"{folder / parent}: file {missing[0]:05} of {counts[parent, part]} of {part!r} is "
                "missing: download the data set again"
            )
    return {key: [files[n] for n in sorted(files)] for key, files in sorted(found.items())}


def _hub_tables(folder: Path, shards: Mapping[tuple[str, str], Sequence[Path]]) -> dict[str, Found]:
    parents = {parent for parent, _ in shards}
    if len(parents) > 1 and not parents <= set(KINDS):
        raise DataError(
            f"{folder}: holds several data sets ({', '.join(sorted(parents))}): name the folder of "
            "one"
        )
    tables: dict[str, list[Found]] = {}
    for (parent, part), files in shards.items():
        kind = next((name for name in (parent, part) if name in KINDS), "tasks")
        tables.setdefault(kind, []).append(_shard_rows(files, part, kind))
    return {kind: chain.from_iterable(rows) for kind, rows in tables.items()}


def _shard_rows(files: Sequence[Path], part: str, kind: str) -> Iterator[tuple[str, Row]]:
    """A row without a split has its part's; a part with a kind's name is none."""
    for file in files:
        for where, row in parquet_rows(file, file.name):
            yield where, row if part == kind else {"split": part, **row}


def require_datasets() -> Any:
    """The package `datasets`, without its progress bars. Raises DataError saying how to get it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"needs the package `datasets`: pip install datasets ({error})") from error
    datasets.disable_progress_bars()
    return datasets


def undecoded(name: str, rows: Any) -> Iterator[Row]:
    """The rows of a data set of `datasets` as Arrow has them: an image or a sound is the path and
    the bytes that are there. Decoded, paths would be opened and URLs fetched. Raises DataError.
    """
    for table in rows.with_format("arrow").iter(_BATCH_ROWS):
        try:
            table.validate(full=True)
            yield from table.to_pylist()
        except ValueError as error:  # pyarrow's own, and text that is not UTF-8
            raise DataError(f"{name}: a damaged Arrow table: {one_line(error)}") from error


def _numbered(folder: Path, name: str, rows: Any) -> Iterator[tuple[str, Row]]:
    found = undecoded(str(folder), rows)
    return ((f"{name} {number}", row) for number, row in enumerate(found, start=1))


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
