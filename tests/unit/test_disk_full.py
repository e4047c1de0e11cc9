"""A full disk: one line that names folder and room, nothing finished is lost, resume goes on."""

import errno
import logging
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from stargate.errors import MachineError
from stargate.launch.cli import main
from stargate.monitoring.journal import _logged
from stargate.records import files as durable
from stargate.records.parquet import write_parquet
from stargate.records.repair import Repairs, discovery, repair
from stargate.records.store import RunStore
from tests.unit.test_pair_steps import iterate, run_context


def fill_after(num_writes: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the write after the first `num_writes` on, every one fails at the end: on fsync, which
    is where a disk that allocates late says it.
    """
    sync, done = durable.sync, Counter[str]()

    def fails(path: Path) -> None:
        if path.name.endswith(".tmp"):
            done["writes"] += 1
            if done["writes"] > num_writes:
                raise OSError(number, os.strerror(number))
        sync(path)

    monkeypatch.setattr(durable, "sync", fails)


def ids(store: RunStore, table: str, key: str) -> list[str]:
    return sorted(row[key] for row in store.read("t0", table))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("num_writes", [0, 1, 3])
def test_the_iteration_stops_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int, overlap: bool
) -> None:
    with monkeypatch.context() as patch:
        fill_after(num_writes, errno.ENOSPC, patch)
        with pytest.raises(MachineError) as caught:
            iterate(run_context(tmp_path, overlap))
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/t0")
    assert "the disk is full (" in line and "MiB are free)" in line and "stargate resume" in line
    assert "\n" not in line
    before = ids(RunStore(tmp_path), "dialogues", "id")
    assert (len(before) > 0) == (num_writes > 0)
    assert discovery(tmp_path) == []
    assert repair(tmp_path, []) == Repairs()  # nothing half-written is left
    context = run_context(tmp_path, overlap)
    iterate(context)
    # Those that were missing, no others.
    assert context.counters.dialogues["t0"] == 12 - len(before)
    for table, key in (("dialogues", "id"), ("scores", "dialogue_id")):
        found = ids(context.store, table, key)
        assert (len(found), len(set(found))) == (12, 12)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "the disk is full"),
        (errno.EFBIG, "the disk is full"),
        (errno.EROFS, "part-000000.parquet can't be written: Read-only file system"),
        (errno.EIO, "part-000000.parquet can't be written: Input/output error"),
    ],
)
def test_other_ways_of_a_disk_to_say_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    fill_after(0, number, monkeypatch)
    with pytest.raises(MachineError, match=words):
        iterate(run_context(tmp_path))


def test_other_errors_of_a_write_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))

    with pytest.raises(FileNotFoundError):
        durable.write_atomically(tmp_path / "f", fails)


def test_no_inodes_left_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(f_files=1000, f_favail=0, f_frsize=4096, f_bavail=9, f_blocks=10)
    monkeypatch.setattr(os, "statvfs", lambda folder: state)
    problem = durable.disk_problem(OSError(errno.ENOSPC, "full"), tmp_path / "part")
    assert problem is not None
    assert problem.startswith(f"{tmp_path}: the disk has no inodes left for more files (of 1,000)")


def test_the_lock_of_a_full_disk_names_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *given: object, **named: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with (
        pytest.raises(MachineError, match=rf"^{tmp_path}: the disk is full .*\.lock can't be"),
        durable.hold(tmp_path),
    ):
        pytest.fail("held")


def test_metrics_of_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")  # every write to it is ENOSPC
    with pytest.raises(MachineError, match=r"the disk is full .* metrics\.jsonl can't be written"):
        RunStore(tmp_path).append_metrics({"event": "evaluation"})


def test_parquet_of_a_full_disk_is_named_by_pyarrow_too(tmp_path: Path) -> None:
    target = tmp_path / "scores.parquet"

    def write(temporary: Path) -> None:
        temporary.symlink_to("/dev/full")
        table = pa.table({"text": ["x" * 1000] * 1000})
        write_parquet(temporary, table.schema, table.to_batches())

    with pytest.raises(MachineError, match="the disk is full"):
        durable.write_atomically(target, write)
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_room_says_nothing_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "driver.log").symlink_to("/dev/full")
    with _logged(tmp_path / "driver.log"):
        logging.getLogger("stargate").warning("a line that has no place")
    assert capsys.readouterr() == ("", "")


def test_an_error_that_is_none_of_the_disks_stays_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(args: object) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "a defect of ours")

    monkeypatch.setattr("stargate.launch.doctor.run", run)
    with pytest.raises(ConnectionResetError):
        main(["doctor"])
