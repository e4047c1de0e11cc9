"""Writes datasets, whole or not at all.

File names come from this module and from ids of splits ([A-Za-z0-9._-], not starting with a dot),
never from texts, so nothing can be written outside the folder that was named.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stargate.data.dataset import Dataset
from stargate.data.reading import KINDS, Row
from stargate.errors import DataError
from stargate.records.files import whole_folder, write_text

# The column and value that a task's row leaves out.
_NEEDS_QUESTION = ("needs_question", True)
# What a folder may hold that --force replaces: anything else was not written by us.
_OURS = frozenset(
    {"import-report.json", "dataset_dict.json", "build-report.json"}
    | {f"{kind}.{end}" for kind in KINDS for end in ("jsonl", "parquet")}
)


def dataset_rows(dataset: Dataset, kind: str) -> Iterator[Row]:
    """The rows of a dataset's tasks, personas or golds, every column filled."""
    if kind == "tasks":
        yield from map(asdict, dataset.tasks.values())
    elif kind == "personas":
        for id, persona in dataset.personas.items():
            yield {**asdict(persona), "fact_origins": dataset.fact_origins.get(id, ())}
    else:
        for (task_id, persona_id), (text, used) in dataset.golds.items():
            yield gold_row(task_id, persona_id, text, used)


def gold_row(task_id: str, persona_id: str, text: str, used: tuple[int, ...] = ()) -> Row:
    """The row of a gold, every column filled."""
    return {"task_id": task_id, "persona_id": persona_id, "text": text, "facts_used": used}


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Readable JSON, durably. Text from data may hold any character; it is written as ASCII."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def write_jsonl(file: Path, rows: Iterable[Row]) -> int:
    """Writes rows as JSON lines, without columns at their default. Returns how many; no rows, no
    file.
    """
    count = 0
    with file.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            count += 1
            kept = {
                k: v for k, v in row.items() if v not in ((), None) and (k, v) != _NEEDS_QUESTION
            }
            out.write(json.dumps(kept, ensure_ascii=False) + "\n")
    if not count:
        file.unlink()
    return count


@contextmanager
def new_folder(out: Path, *, force: bool = False, source: Path | None = None) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `out` when the block ends well.

    Raises DataError at once when `out` exists, unless it is empty or, with `force`, holds nothing
    but a dataset. `source` is what is read meanwhile: it must not lie in `out`.
    """
    _check_target(out, force, source)
    try:
        with whole_folder(out) as folder:
            yield folder
    except OSError as error:
        raise DataError(f"{out}: can't be written: {error.strerror or error}") from error


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
