"""Records on shared storage: rows come back exactly once, whatever fails."""

import os
import threading
from pathlib import Path

import pytest

from stargate.config.uri import parse_uri
from stargate.errors import DataError
from stargate.records.repair import discovery, repair
from stargate.records.store import RunStore
from stargate.remote.fetch import fetch
from stargate.remote.lease import LEASE
from stargate.remote.storage import Storage, StorageError, open_storage
from tests.fakes.clock import wait_for
from tests.fakes.flaky_storage import FlakyHandler, KilledStorage, memory_storage, new_name
from tests.fakes.remote_run import (
    Clock,
    add_scores,
    add_selection,
    fetched_ids,
    new_run,
    quiet,
    score_ids,
    start,
)


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_run_lands_and_comes_back(tmp_path: Path, scheme: str) -> None:
    uri = f"file://{tmp_path}/shared" if scheme == "file" else f"memory://{new_name()}"
    storage = open_storage(parse_uri(uri)).child("run-1")
    assert str(storage) == f"{uri}/run-1"
    storage.check_writable()
    store = new_run(tmp_path / "run-1")
    work = start(storage, store.root)
    add_scores(store, 0, 1, 2)
    store.append_metrics({"event": "iteration"})
    model = store.root / "models" / "m1"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"w" * 3_000_000)
    (model / "run.py").write_text("never copied")
    store.write_json("summary.json", {"status": "finished"})
    (store.root / "judge.sqlite").write_bytes(b"not a record")
    store.compact("t0")
    add_scores(store, 3)
    work.finish()
    assert storage.names("t0/scores") == ["part-000003.parquet"]
    assert storage.names("t0") == ["scores.parquet"]
    assert storage.names("models/m1") == ["model.safetensors"]
    assert storage.read(LEASE, 1000) is None

    there = tmp_path / "other machine" / "run-1"
    fetched = fetch(storage, there, quiet, models=True)
    assert (fetched.damaged, fetched.is_complete, fetched.num_files) == ((), True, 6)
    assert score_ids(there) == ["d0", "d1", "d2", "d3"]
    assert (there / "models/m1/model.safetensors").read_bytes() == b"w" * 3_000_000
    assert RunStore(there).read_metrics() == [{"event": "iteration"}]
    assert sorted(os.listdir(there.parent)) == ["run-1"]
    fetch(storage, there, quiet, models=False)  # nobody worked on it: it may be fetched anew
    assert not (there / "models" / "m1").exists()


def test_merged_parts_go_only_when_what_replaces_them_is_settled(
    tmp_path: Path, store: RunStore
) -> None:
    storage, seen = memory_storage(kind=KilledStorage), list[int]()

    def look() -> None:
        """A reader at this very moment."""
        ids = fetched_ids(storage, tmp_path / "reader" / str(len(seen)))
        assert len(ids) == len(set(ids))
        seen.append(len(ids))

    work = start(storage, store.root)
    add_scores(store, 0, 1, 2)
    work.finish()
    work = start(storage, store.root)
    storage.look = look  # type: ignore[method-assign]  # of this storage alone
    store.compact("t0")
    work.finish()
    storage.look = lambda: None  # type: ignore[method-assign]
    assert len(seen) >= 6 and set(seen) == {3}
    assert storage.names("t0/scores") == []


def test_an_outage_loses_nothing_and_says_so_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handler: FlakyHandler,
    storage: Storage,
    store: RunStore,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-key")
    work = start(storage, store.root, (said := []).append)
    handler.secret, handler.is_down = "planted-secret-key", True
    add_scores(store, *range(5))
    wait_for(lambda: handler.num_refused >= 5)
    assert len([line for line in said if "trying again" in line]) == 1
    handler.is_down = False
    work.finish()
    assert len([line for line in said if "takes records again" in line]) == 1
    assert "[key]" in said[0] and "planted" not in "".join(said)
    assert fetched_ids(storage, tmp_path / "there") == [f"d{number}" for number in range(5)]


def test_an_outage_at_the_end_names_what_did_not_land(
    tmp_path: Path, clock: Clock, handler: FlakyHandler, storage: Storage, store: RunStore
) -> None:
    work = start(storage, store.root)
    handler.is_down = True
    add_scores(store, *range(5))
    handler.at_upload = lambda: clock.passes(0.3)
    with pytest.raises(StorageError) as caught:
        work.finish(0.5)
    assert "not there: t0/scores/part-000000.parquet, " in str(caught.value)
    assert "and 2 more (memory://" in str(caught.value) and "stargate resume" in str(caught.value)
    assert len(score_ids(store.root)) == 5
    handler.is_down = False  # the next sitting lands it; the lease is of a process that lives
    start(storage, store.root).finish()
    assert len(fetched_ids(storage, tmp_path / "there")) == 5


def test_an_upload_that_was_torn_is_noticed_and_done_again(
    tmp_path: Path, handler: FlakyHandler, storage: Storage, store: RunStore
) -> None:
    work = start(storage, store.root)
    handler.num_torn = 2
    add_scores(store, 0, 1)
    work.finish()
    assert handler.num_torn == 0
    assert fetched_ids(storage, tmp_path / "there") == ["d0", "d1"]


def test_a_slow_storage_holds_nobody_up_and_the_end_waits(
    tmp_path: Path, clock: Clock, handler: FlakyHandler, storage: Storage, store: RunStore
) -> None:
    answers = threading.Event()
    work = start(storage, store.root)
    handler.at_upload = answers.wait
    add_scores(store, *range(8))  # while not one upload ends
    handler.at_upload = lambda: clock.passes(1.0)
    answers.set()
    work.finish(5.0)  # it takes longer than that in all, but something lands all the time
    assert clock.now > 8.0
    assert len(fetched_ids(storage, tmp_path / "there")) == 8


def test_damage_on_the_storage_is_named_and_its_rows_made_again(
    tmp_path: Path, storage: Storage, store: RunStore
) -> None:
    work = start(storage, store.root)
    add_scores(store, 0, 1, 2)
    add_selection(store, 0)
    store.write_json("summary.json", {"status": "finished"})
    work.finish()
    part = "t0/scores/part-000000.parquet"
    content = storage.read(part, 1 << 20)
    assert content is not None
    storage.put_bytes(part, content[:100] + b"\0" + content[101:])
    storage.delete("t0/scores/part-000002.parquet")
    there = tmp_path / "there"
    fetched = fetch(storage, there, quiet, models=True)
    assert fetched.damaged == (
        (part, "its checksum does not match", "part-000000.parquet.damaged-1"),
        ("t0/scores/part-000002.parquet", "is missing", "part-000002.parquet.damaged-1"),
    )
    summary = RunStore(there).read_json("summary.json")
    assert summary == {"status": "stopped: damaged files"}
    assert score_ids(there) == ["d1"]
    # There are no dialogues here, so d1 counts as made from lost ones.
    repair(there, discovery(there))
    assert list(RunStore(there).read("t0", "selections")) == []
    # What is missing now goes there, too, before anything new is made.
    work = start(storage, there)
    assert "part-000000.parquet" not in storage.names("t0/scores")
    add_scores(RunStore(there), 0, 1, 2)
    work.finish()
    assert sorted(fetched_ids(storage, tmp_path / "third")) == ["d0", "d1", "d2"]


def test_a_folder_that_is_behind_may_not_overwrite_what_another_did(
    tmp_path: Path, storage: Storage, store: RunStore
) -> None:
    work = start(storage, store.root)
    add_scores(store, 0)
    work.finish()
    new = tmp_path / "new"
    fetch(storage, new, quiet, models=True)
    with pytest.raises(DataError, match="is there already"):
        fetch(storage, store.root, quiet, models=True)
    work = start(storage, new)
    add_scores(RunStore(new), 1)
    work.finish()
    with pytest.raises(DataError, match="holds what this folder does not have"):
        start(storage, store.root)
    with pytest.raises(DataError, match="is there already"):  # it was worked on
        fetch(storage, new, quiet, models=True)
