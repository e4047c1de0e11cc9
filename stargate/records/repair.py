"""Puts a run directory in order that a killed process, or a bad disk, has left.

    discovery: which tables' files and which lines of metrics are damaged     (changes nothing)
    repair: temporary files go, parts of a killed `compact` go, damaged files are set aside as
            NAME.damaged-N, a torn last line of metrics.jsonl goes, and rows that were made from
            lost ones go too

The caller holds the run's lock. Rows that are gone are made again by the run that goes on: it makes
whatever its tables lack. `repair` may itself be killed at any point; the next one goes on.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stargate.records.files import (
    entries_within,
    place_aside,
    read_errors,
    remove_temporaries,
    set_aside,
    write_atomically,
)
from stargate.records.parquet import file_problem
from stargate.records.schemas import SCHEMAS, Row
from stargate.records.store import METRICS, RunStore, remove_merged_parts

_SCOPE = re.compile(r"(t|eval-m)\d+")
_TABLE = re.compile(r"[^.].*\.parquet")
_EVALUATION = "eval-"
_BASE_EVALUATION = "eval-m0"


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged file, and what is wrong with it."""

    file: Path
    problem: str


@dataclass(frozen=True, slots=True)
class Repairs:
    """What was done. `set_aside` are the new places of damaged files."""

    set_aside: tuple[tuple[Damage, Path], ...] = ()
    num_temporaries: int = 0
    num_merged_parts: int = 0
    num_torn_lines: int = 0
    num_outdated_rows: int = 0


def discovery(root: Path) -> list[Damage]:
    """The damaged files among all tables, metrics.jsonl and what is kept as JSON."""
    found = []
    for scope in scopes_of(root):
        for file in entries_within(scope):
            if _TABLE.fullmatch(file.name) and (problem := file_problem(file)) is not None:
                found.append(Damage(file, problem))
    metrics = root / METRICS
    if metrics.is_file() and (bad := _bad_lines(metrics)):
        found.append(Damage(metrics, f"line {bad[0] + 1} is not one of metrics"))
    kept = [root / "summary.json", root / "sittings.json"]
    kept += [file for scope in scopes_of(root) for file in sorted(scope.glob("*.json"))]
    found += [
        Damage(file, "not valid JSON") for file in kept if file.is_file() and not _is_json(file)
    ]
    return found


def repair(root: Path, damaged: Iterable[Damage]) -> Repairs:
    """Repairs what `discovery` found, and what a killed process left."""
    scopes = scopes_of(root)
    folders = [root, *scopes]
    folders += [table for scope in scopes for table in scope.iterdir() if table.is_dir()]
    num_temporaries = sum(map(remove_temporaries, folders))
    aside = tuple((damage, _set_aside(damage.file)) for damage in damaged)
    # Only now: the parts that a damaged merged file held, and that are still there, are good.
    tables = [scope / table for scope in scopes for table in SCHEMAS]
    num_merged_parts = sum(map(remove_merged_parts, tables))
    return Repairs(
        set_aside=aside,
        num_temporaries=num_temporaries,
        num_merged_parts=num_merged_parts,
        num_torn_lines=_cut_torn_line(root / METRICS),
        num_outdated_rows=_remove_outdated(RunStore(root), [scope.name for scope in scopes]),
    )


def scopes_of(root: Path) -> list[Path]:
    """The folders of a run directory that hold tables."""
    return sorted(f for f in root.iterdir() if f.is_dir() and _SCOPE.fullmatch(f.name))


def set_aside_files(root: Path) -> list[str]:
    """Names, from the run directory, of all damaged files that were ever set aside."""
    store = RunStore(root)
    found = [file.name for file in sorted(root.glob("*.damaged-*"))]
    return found + [name for scope in scopes_of(root) for name in store.damaged(scope.name)]


def _set_aside(file: Path) -> Path:
    if file.name != METRICS:
        return set_aside(file)
    # Its good lines are kept: what a training step did can't be made again. The copy is written
    # first, so that the name is never without a file.
    lines = _content(file).splitlines(keepends=True)
    bad = set(_bad_lines(file))
    place = place_aside(file)
    write_atomically(place, lambda target: target.write_bytes(b"".join(lines)))
    good = b"".join(line for i, line in enumerate(lines) if i not in bad)
    write_atomically(file, lambda target: target.write_bytes(good))
    return place


def _content(file: Path) -> bytes:
    """All bytes of a file. Raises MachineError where it can't be read now."""
    with read_errors(file):
        return file.read_bytes()


def _bad_lines(file: Path) -> list[int]:
    """Indices of whole lines that are no metrics; a torn last one is not damage."""
    found = []
    for number, line in enumerate(_content(file).splitlines(keepends=True)):
        if not line.endswith(b"\n"):
            continue
        try:
            json.loads(line)["event"]
        except (ValueError, RecursionError, TypeError, KeyError):
            found.append(number)
    return found


def _is_json(file: Path) -> bool:
    """Whether a file is a JSON object."""
    try:
        return isinstance(json.loads(_content(file)), dict)
    except (ValueError, RecursionError):
        return False


def _cut_torn_line(file: Path) -> int:
    """Removes what a killed process had begun to write. Returns 1 if there was such a line."""
    if not file.is_file():
        return 0
    content = _content(file)
    if not content or content.endswith(b"\n"):
        return 0
    whole = content[: content.rfind(b"\n") + 1]
    write_atomically(file, lambda target: target.write_bytes(whole))
    return 1


def _remove_outdated(store: RunStore, scopes: list[str]) -> int:
    """Removes rows that were made from rows which are lost. Returns their number.

    A dialogue that is played again need not be the same to the last token, so a score of the lost
    one must not stand beside it. What depends on nothing that was lost stays.
    """
    # The tables of which files were set aside, now or earlier.
    lost = {
        scope: {Path(name).parts[1].partition(".")[0] for name in store.damaged(scope)}
        for scope in scopes
    }
    count = 0
    for scope in scopes:
        if lost[scope] and not scope.startswith(_EVALUATION):
            count += _remove_outdated_iteration(store, scope)
        elif lost[scope]:
            count += _remove_outdated_evaluation(store, scope)
    # Verdicts are about texts, and every checkpoint's are compared with m_0's. The judge's replies
    # stay in its cache, so verdicts on unchanged texts come again at no cost.
    unjudged = [scope for scope in scopes if lost[scope] & {"dialogues", "responses"}]
    if _BASE_EVALUATION in unjudged:
        unjudged = scopes
    return count + sum(store.keep(scope, "verdicts", lambda row: False) for scope in unjudged)


def _remove_outdated_iteration(store: RunStore, scope: str) -> int:
    """dialogues -> scores -> selections -> examples"""
    played = {row["id"] for row in store.read(scope, "dialogues")}
    count = store.keep(scope, "scores", lambda row: row["dialogue_id"] in played)
    scored = {row["dialogue_id"] for row in store.read(scope, "scores")}
    count += store.keep(scope, "selections", lambda row: scored.issuperset(row["candidates"]))
    selected = {(row["pair_id"], row["dialogue_id"]) for row in store.read(scope, "selections")}
    return count + store.keep(
        scope, "examples", lambda row: (row["pair_id"], row["dialogue_id"]) in selected
    )


def _remove_outdated_evaluation(store: RunStore, scope: str) -> int:
    """dialogues -> question_fits, controls, responses"""
    played = {None, *(row["id"] for row in store.read(scope, "dialogues"))}

    def is_current(row: Row) -> bool:
        return row["dialogue_id"] in played and row.get("other_dialogue_id") in played

    made = ("question_fits", "controls", "responses")
    return sum(store.keep(scope, table, is_current) for table in made)
