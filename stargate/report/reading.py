"""Reads the plain files of a run directory: JSON, metrics lines, Parquet columns, eval.json.

Nothing here knows what the report shows. A file that is broken is a DataError that names it; a
file that is absent gives None or nothing, and the caller says so.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter, ValidationError

from stargate.errors import DataError
from stargate.evaluation.measures import About
from stargate.evaluation.qualification import Criterion
from stargate.evaluation.statistics import Measure, PairedMeasure
from stargate.records.files import read_json
from stargate.records.parquet import file_problem
from stargate.records.store import table_files
from stargate.report.records import Evaluation, Iteration, Judge

Row = dict[str, Any]
_T = TypeVar("_T")
_CHECKPOINT = re.compile(r"m\d+")
# What Python raises for a value of another shape than the reader takes it for.
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Values of another shape than a run writes become DataError, which names the place."""
    try:
        yield
    except _ODD as error:
        raise DataError(f"{place}: not what a run writes: {error!r}") from error


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


def read_iterations(file: Path) -> tuple[Iteration, ...]:
    """The iterations of metrics.jsonl in order; of one that was done again, the last.

    A last line without an end is what a killed process was writing: it is not counted.
    """
    if not file.is_file():
        return ()
    found: dict[int, Iteration] = {}
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n") or not line.strip():
            continue
        try:
            values = json.loads(line)
            if values["event"] == "iteration":
                iteration = parse(Iteration, values)
                found[iteration.number] = iteration
        except (*_ODD, RecursionError) as error:
            raise DataError(f"{file}:{number}: not a line of metrics: {error!r}") from error
    return tuple(found[number] for number in sorted(found))


def scopes(root: Path, prefix: str) -> list[int]:
    """t of every folder ROOT/PREFIX<t>, in order; prefixes are "t" and "eval-m"."""
    names = (path.name for path in root.iterdir() if path.is_dir())
    found = (re.fullmatch(rf"{prefix}(\d+)", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def read_columns(root: Path, scope: str, table: str, columns: Sequence[str]) -> list[Row]:
    """Rows of one table with these columns only ("turns.list.element.question" for nested ones).

    Token ids are most of a table's bytes and the report needs none. Nothing if there is no table;
    None in the columns that a table of an older version does not have.
    """
    rows: list[Row] = []
    for file in table_files(root / scope / table):
        if (problem := file_problem(file)) is not None:
            raise DataError(f"{file}: {problem}")
        try:
            parquet = pq.ParquetFile(file)
            known = set(parquet.schema_arrow.names)
            missing = dict.fromkeys(c for c in columns if c.partition(".")[0] not in known)
            read = parquet.read(columns=[c for c in columns if c not in missing]).to_pylist()
            rows += [{**missing, **row} for row in read] if missing else read
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise DataError(f"{file}: can't be read: {' '.join(str(error).split())}") from error
    return rows


def read_evaluation(root: Path, source: str, name: str) -> Evaluation:
    """ROOT/eval.json; without one, an evaluation without measures. Raises DataError."""
    file = root / "eval.json"
    tree = read_json(file)
    if tree is None:
        checkpoints = tuple(f"m{version}" for version in scopes(root, "eval-m"))
        return Evaluation(source, name, checkpoints)
    checkpoints = tuple(sorted(filter(_CHECKPOINT.fullmatch, tree), key=lambda m: int(m[1:])))
    with reading(file):
        about = tree.get("about") or {}
        return Evaluation(
            source,
            name,
            checkpoints,
            about=parse(About, about) if about else None,
            confidence=parse(float, about.get("confidence") or 0.95),
            measures={m: _measures(tree[m]) for m in checkpoints},
            changes={
                m: {name: parse(PairedMeasure, value) for name, value in values.items()}
                for m, values in (tree.get("changes") or {}).items()
            },
            win_rates={
                m: {k: v for k, v in tree[m].items() if _is_win_rate(k, v)} for m in checkpoints
            },
            judge=_judge(tree["judge"]) if tree.get("judge") else None,
        )


def _measures(values: Mapping[str, Any]) -> dict[str, Measure]:
    return {
        name: parse(Measure, value)
        for name, value in values.items()
        if isinstance(value, dict) and "mean" in value and not name.endswith("_details")
    }


def _is_win_rate(name: str, value: object) -> bool:
    return name.startswith("win_rate") and name.endswith("_details") and isinstance(value, dict)


def _judge(value: Mapping[str, Any]) -> Judge:
    fit = bool(value["fit"])
    criteria = (value.get("criteria") or {}).items()
    return Judge(
        fit,
        parse(str, value["model"]) if value.get("model") else None,
        str(value.get("verdict") or ("the judge is fit" if fit else "the judge is UNFIT")),
        tuple(parse(Criterion, {**entry, "name": name}) for name, entry in criteria),
    )
