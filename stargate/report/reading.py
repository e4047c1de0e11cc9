"""Reads the plain files of a run directory: JSON, metrics lines, Parquet columns, eval.json.

Nothing here knows what the report shows. A file that is broken is a DataError that names it; a
file that is absent gives None or nothing, and the caller says so.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stargate.errors import DataError
from stargate.evaluation.qualification import Criterion
from stargate.evaluation.statistics import Measure
from stargate.records.files import read_json
from stargate.records.parquet import file_problem
from stargate.records.store import table_files
from stargate.report.records import About, Change, Evaluation, Iteration, Judge, RoleplayerInfo

CHECKPOINT = re.compile(r"m\d+")
_EVALUATION_SCOPE = re.compile(r"eval-m(\d+)")
_ITERATION_SCOPE = re.compile(r"t(\d+)")
Json = dict[str, Any]
# What Python raises for a value of another shape than the reader takes it for.
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Values of another shape than a run writes become DataError, which names the place."""
    try:
        yield
    except _ODD as error:
        raise DataError(f"{place}: not what a run writes: {error!r}") from error


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
                found[int(values["iteration"])] = _iteration(values)
        except (*_ODD, RecursionError) as error:
            raise DataError(f"{file}:{number}: not a line of metrics: {error!r}") from error
    return tuple(found[number] for number in sorted(found))


def _iteration(values: Json) -> Iteration:
    return Iteration(
        number=int(values["iteration"]),
        losses=_floats(values["train_losses"]),
        grad_norms=_floats(values["grad_norms"]),
        learning_rates=_floats(values["learning_rates"]),
        validation_loss=number_of(values.get("validation_loss")),
        num_examples=int(values["num_examples"]),
        train_seconds=number_of(values.get("train_seconds")),
        push_seconds=number_of(values.get("push_seconds")),
        push_phases={str(k): float(v) for k, v in (values.get("push_phases") or {}).items()},
    )


def iteration_scopes(root: Path) -> list[int]:
    """t of every folder RUN/t<t>, in order."""
    return _numbered(root, _ITERATION_SCOPE)


def evaluation_scopes(root: Path) -> list[int]:
    """t of every folder ROOT/eval-m<t>, in order."""
    return _numbered(root, _EVALUATION_SCOPE)


def _numbered(root: Path, pattern: re.Pattern[str]) -> list[int]:
    matches = (pattern.fullmatch(path.name) for path in root.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def read_columns(root: Path, scope: str, table: str, columns: Sequence[str]) -> list[Json]:
    """Rows of one table with these columns only ("turns.list.element.question" for nested ones).

    Token ids are most of a table's bytes and the report needs none. Nothing if there is no table;
    None in the columns that a table of an older version does not have.
    """
    rows: list[Json] = []
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


def read_evaluation(root: Path, source: str, name: str, scopes: Sequence[int]) -> Evaluation:
    """ROOT/eval.json; without one, an evaluation without measures. Raises DataError."""
    file = root / "eval.json"
    tree = read_json(file)
    if tree is None:
        checkpoints = tuple(f"m{version}" for version in scopes)
        return Evaluation(source, name, _about({}), checkpoints, {}, {}, {}, None)
    checkpoints = tuple(sorted(filter(CHECKPOINT.fullmatch, tree), key=lambda m: int(m[1:])))
    with reading(file):
        return Evaluation(
            source=source,
            name=name,
            about=_about(tree.get("about") or {}),
            checkpoints=checkpoints,
            measures={m: _measures(tree[m]) for m in checkpoints},
            changes={m: _changes(values) for m, values in (tree.get("changes") or {}).items()},
            win_rates={
                m: {k: v for k, v in tree[m].items() if _is_win_rate(k, v)} for m in checkpoints
            },
            judge=_judge(tree["judge"]) if tree.get("judge") else None,
        )


def _measures(values: Mapping[str, Any]) -> dict[str, Measure]:
    return {
        name: _measure(value)
        for name, value in values.items()
        if isinstance(value, dict) and "mean" in value and not name.endswith("_details")
    }


def _changes(values: Mapping[str, Any]) -> dict[str, Change]:
    return {
        name: Change(
            _measure(value), _count(value["num_only_before"]), _count(value["num_only_after"])
        )
        for name, value in values.items()
    }


def _measure(value: Mapping[str, Any]) -> Measure:
    return Measure(
        mean=number_of(value["mean"]),
        ci_low=number_of(value["ci_low"]),
        ci_high=number_of(value["ci_high"]),
        standard_error=number_of(value["standard_error"]),
        n=_count(value["n"]),
        task_clusters=_count(value["task_clusters"]),
        persona_clusters=_count(value["persona_clusters"]),
    )


def _is_win_rate(name: str, value: object) -> bool:
    return name.startswith("win_rate") and name.endswith("_details") and isinstance(value, dict)


def _judge(value: Mapping[str, Any]) -> Judge:
    criteria = tuple(
        Criterion(
            name=name,
            value=number_of(entry["value"]),
            requirement=str(entry["requirement"]),
            passed=bool(entry["passed"]),
            n=_count(entry["n"]),
            ci_low=number_of(entry.get("ci_low")),
            ci_high=number_of(entry.get("ci_high")),
        )
        for name, entry in (value.get("criteria") or {}).items()
    )
    fit = bool(value["fit"])
    verdict = value.get("verdict") or ("the judge is fit" if fit else "the judge is UNFIT")
    return Judge(fit, _text(value.get("model")), str(verdict), criteria)


def _about(value: Mapping[str, Any]) -> About:
    return About(
        split=_text(value.get("split")),
        data=_text(value.get("data")),
        roleplayer=_roleplayer(value.get("roleplayer")),
        trained_with_roleplayer=_roleplayer(value.get("trained_with_roleplayer")),
        num_dialogues=count_of(value.get("num_dialogues")),
        num_turns=count_of(value.get("num_turns")),
        seed=count_of(value.get("seed")),
        confidence=number_of(value.get("confidence")),
    )


def _roleplayer(value: Mapping[str, Any] | None) -> RoleplayerInfo | None:
    if not value:
        return None
    return RoleplayerInfo(
        model=str(value.get("model") or ""),
        prompts=str(value.get("prompts") or ""),
        grounding=_grounding(value.get("grounding")),
    )


def _grounding(value: object) -> str:
    """The type ("facts" or "persona"), written as such or as the config's whole group."""
    return str(value.get("type", "")) if isinstance(value, dict) else str(value or "")


def number_of(value: Any) -> float | None:
    """A finite number; None for none. Raises what `reading` understands."""
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a number must be finite, got {number}")
    return number


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def count_of(value: Any) -> int | None:
    """A whole number; None for none. Raises what `reading` understands."""
    return None if value is None else _count(value)


def _count(value: Any) -> int:
    float(value)  # one that is no float is too long to be shown
    return int(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
