"""Every call of the store to its disk fails once, in every way: no row is lost, none is doubled."""

import asyncio
import errno
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from stargate.errors import ExitCode
from stargate.launch.cli import main
from stargate.records import store as store_module
from stargate.records.repair import discovery, repair, set_aside_files
from stargate.records.schemas import record_row
from stargate.records.store import RunStore
from stargate.types import DialogueScore
from tests.fakes.failing_io import Call, FailingIO, Kind, faults_of, name_of

# With STARGATE_FUZZ=1 every call fails in every way, which takes minutes. Else one call fails for
# each line of the store that makes some and each that calls that line, in one way after another.
EVERY_CALL = os.environ.get("STARGATE_FUZZ", "0") != "0"
RECORDS = os.path.dirname(store_module.__file__)
PLANTED = ["metrics.jsonl.damaged-1", "eval-m0/verdicts/part-000000.parquet.damaged-1"]


def append(store: RunStore, *names: str) -> None:
    rows = [record_row(DialogueScore(name, "p", -1.5, 3)) for name in names]
    asyncio.run(store.append("t0", "scores", rows))


def names(root: Path) -> list[str]:
    return sorted(row["dialogue_id"] for row in RunStore(root).read("t0", "scores"))


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a killed sitting, and a bad disk, have left: something of all that `repair` mends."""
    root = tmp_path_factory.mktemp("left")
    store = RunStore(root)
    append(store, "a")
    part = root / "t0" / "scores" / "part-000000.parquet"
    content = part.read_bytes()
    store.compact("t0")
    append(store, "b", "unwanted")
    part.write_bytes(content)  # merged already
    (root / "eval-m0" / "verdicts").mkdir(parents=True)
    (root / "eval-m0" / "verdicts" / "part-000000.parquet").write_bytes(b"PAR1")
    (root / "t0" / ".scores.parquet.999999999.tmp").write_bytes(b"PAR1")
    store.append_metrics({"event": "evaluation"})
    with (root / "metrics.jsonl").open("a") as file:
        file.write('damaged\n{"event": "to')
    return root


class Sitting:
    """What a run does to its store, in small. It makes what is missing, whatever was there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.acknowledged = {"a", "b"}

    def run(self, args: object) -> int:
        repair(self.root, discovery(self.root))
        store = RunStore(self.root)
        self._append(store, "c", "d")
        store.keep("t0", "scores", lambda row: row["dialogue_id"] != "unwanted")
        self._append(store, "e")
        store.compact("t0")
        if len(store.read_metrics()) < 2:
            store.append_metrics({"event": "iteration"})
        if store.read_json("summary.json") is None:
            store.write_json("summary.json", {"status": "finished"})
        return 0

    def _append(self, store: RunStore, *wanted: str) -> None:
        there = {row["dialogue_id"] for row in store.read("t0", "scores")}
        missing = [name for name in wanted if name not in there]
        append(store, *missing)
        self.acknowledged.update(missing)


def cases(left: Path, root: Path) -> list[tuple[int, Call, Kind]]:
    """Calls, by their numbers, and how they shall fail."""
    sitting = Sitting(shutil.copytree(left, root))
    seen: set[tuple[object, ...]] = set()
    found: list[tuple[int, Call, Kind]] = []

    def passes(calls: list[Call], call: Call) -> None:
        lines = traceback.walk_stack(sys._getframe())
        ours = [
            (frame.f_code, line) for frame, line in lines if RECORDS in frame.f_code.co_filename
        ]
        place = (call[0], *ours[:2])
        kinds = faults_of(call)
        if EVERY_CALL:
            found.extend((len(calls), call, kind) for kind in kinds)
        elif place not in seen:  # the next kind in turn
            found.append((len(calls), call, kinds[len(seen) % len(kinds)]))
        seen.add(place)

    io = FailingIO(sitting.root, passes)
    with io.in_place():
        sitting.run(None)
    assert names(sitting.root) == ["a", "b", "c", "d", "e"]
    assert set_aside_files(sitting.root) == PLANTED
    return found


def test_a_call_that_fails_loses_nothing(
    left: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = []
    for number, call, kind in cases(left, tmp_path / "whole"):
        sitting = Sitting(shutil.copytree(left, tmp_path / "run"))
        io = FailingIO(sitting.root, fails_at(number, kind))
        try:
            check(sitting, *said(sitting, io, monkeypatch, capsys), kind)
        except Exception as error:  # all are looked at before the test fails
            problems.append(f"call {number} {call} {name_of(kind)}: {type(error)}: {error}")
        shutil.rmtree(sitting.root)
    assert not problems, "\n".join(problems)


def test_a_folder_that_can_not_be_listed_is_not_empty(left: Path, tmp_path: Path) -> None:
    """The next part would be written over the first."""
    root = shutil.copytree(left, tmp_path / "run")

    def denied(calls: list[Call], call: Call) -> Kind | None:
        is_listing = call[0] in ("listdir", "scandir") and call[1] == "t0/scores"
        return errno.EACCES if is_listing else None

    with FailingIO(root, denied).in_place(), pytest.raises(PermissionError):
        append(RunStore(root), "c")
    assert names(root) == ["a", "b", "unwanted"]


def fails_at(number: int, kind: Kind) -> Callable[[list[Call], Call], Kind | None]:
    return lambda calls, call: kind if len(calls) == number else None


def said(
    sitting: Sitting,
    io: FailingIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str]:
    """The exit code of a command that does a sitting, and what it says."""
    monkeypatch.setattr("stargate.launch.doctor.run", sitting.run)
    with io.in_place():
        code = main(["doctor"])
    return code, capsys.readouterr().err


def check(sitting: Sitting, code: int, line: str, kind: Kind) -> None:
    """One line named what failed; the store has what it acknowledged, and can go on."""
    if code == 0:  # the call was no part of what counts
        assert line == ""
    else:
        assert code in (ExitCode.DATA, ExitCode.MACHINE)
        assert line.count("\n") == 1 and "Traceback" not in line
        assert str(sitting.root.parent) in line or kind is MemoryError, line
    found = names(sitting.root)
    assert len(set(found)) == len(found) and sitting.acknowledged <= set(found), found
    sitting.run(None)
    assert names(sitting.root) == ["a", "b", "c", "d", "e"]
    events = [line["event"] for line in RunStore(sitting.root).read_metrics()]
    assert events == ["evaluation", "iteration"]
    # No good file was taken for a damaged one. Of metrics a second copy is made.
    assert set(set_aside_files(sitting.root)) - {"metrics.jsonl.damaged-2"} == set(PLANTED)
    assert not list(sitting.root.rglob("*.tmp"))
