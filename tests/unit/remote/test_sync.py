"""Records on shared storage: rows come back exactly once, whatever fails and when."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stargate.config.uri import StorageUri, parse_uri
from stargate.errors import DataError
from stargate.records.repair import discovery, repair
from stargate.records.schemas import record_row
from stargate.records.store import RunStore
from stargate.remote import lease as lease_module
from stargate.remote import sync as sync_module
from stargate.remote.fetch import fetch
from stargate.remote.lease import LEASE, Lease, LeaseHeld
from stargate.remote.manifest import (
    FOLDER,
    Content,
    Manifest,
    manifest_name,
    newest_manifest,
    read_manifest,
)
from stargate.remote.scan import is_model_file, is_record, scan
from stargate.remote.storage import Storage, StorageError, open_storage
from stargate.remote.sync import RemoteSync
from stargate.types import Selection
from tests.fakes.flaky_storage import FlakyHandler, Killed, KilledStorage, memory_storage
from tests.fakes.remote_run import (
    add_scores,
    new_run,
    new_sync,
    score_ids,
    start,
    without_pauses,
)

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch, 0.01, 0.02)
    monkeypatch.setattr("stargate.remote.fetch._PAUSES", (0.0,) * 4)


class Clock:
    """The time by which a sync knows that nothing moves: it passes as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep)
        monkeypatch.setattr(sync_module, "time", fake)

    def passes(self, seconds: float) -> None:
        self.now += seconds


def new_name() -> str:
    return f"bucket-{os.getpid()}-{next(_NUMBERS)}"


def add_selection(store: RunStore, number: int) -> None:
    row = record_row(Selection(f"p{number}", f"d{number}", -1.0, (f"d{number}",), (-1.0,)))
    asyncio.run(store.append("t0", "selections", [row]))


def quiet(text: str) -> None:
    pass


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


def test_merged_parts_go_only_when_what_replaces_them_is_settled(tmp_path: Path) -> None:
    name = new_name()
    store = new_run(tmp_path / "run")
    seen: list[int] = []

    def look() -> None:
        """A reader at this very moment."""
        place = tmp_path / "reader" / str(len(seen))
        fetched = fetch(memory_storage(name), place, quiet, models=True)
        assert fetched.damaged == ()
        assert sorted(score_ids(place)) == sorted(set(score_ids(place)))
        seen.append(len(score_ids(place)))

    storage = KilledStorage(name)
    work = start(storage, store.root)
    add_scores(store, 0, 1, 2)
    work.finish()
    work = start(storage, store.root)
    storage._look = look
    store.compact("t0")
    work.finish()
    storage._look = lambda: None
    assert len(seen) >= 6 and set(seen) == {3}
    assert storage.names("t0/scores") == []


def test_an_outage_loses_nothing_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-key")
    handler, said = FlakyHandler(), []
    storage = memory_storage(new_name(), handler)
    store = new_run(tmp_path / "run")
    work = start(storage, store.root, said.append)
    handler.secret, handler.is_down = "planted-secret-key", True
    add_scores(store, *range(5))
    wait_for(lambda: handler.num_refused >= 5)
    assert len([line for line in said if "trying again" in line]) == 1
    handler.is_down = False
    work.finish()
    assert len([line for line in said if "takes records again" in line]) == 1
    assert "[key]" in said[0] and "planted" not in "".join(said)
    there = tmp_path / "there"
    fetch(storage, there, quiet, models=True)
    assert score_ids(there) == [f"d{number}" for number in range(5)]


def test_an_outage_at_the_end_names_what_did_not_land(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, clock = FlakyHandler(), Clock(monkeypatch)
    storage = memory_storage(new_name(), handler)
    store = new_run(tmp_path / "run")
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
    fetch(storage, tmp_path / "there", quiet, models=True)
    assert len(score_ids(tmp_path / "there")) == 5


def test_an_upload_that_was_torn_is_noticed_and_done_again(tmp_path: Path) -> None:
    handler = FlakyHandler()
    storage = memory_storage(new_name(), handler)
    store = new_run(tmp_path / "run")
    work = start(storage, store.root)
    handler.num_torn = 2
    add_scores(store, 0, 1)
    work.finish()
    assert handler.num_torn == 0
    fetched = fetch(storage, tmp_path / "there", quiet, models=True)
    assert fetched.damaged == () and score_ids(tmp_path / "there") == ["d0", "d1"]


def test_a_slow_storage_holds_nobody_up_and_the_end_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, clock, answers = FlakyHandler(), Clock(monkeypatch), threading.Event()
    storage = memory_storage(new_name(), handler)
    store = new_run(tmp_path / "run")
    work = start(storage, store.root)
    handler.at_upload = answers.wait
    add_scores(store, *range(8))  # while not one upload ends
    handler.at_upload = lambda: clock.passes(1.0)
    answers.set()
    work.finish(5.0)  # it takes longer than that in all, but something lands all the time
    assert clock.now > 8.0
    fetch(storage, tmp_path / "there", quiet, models=True)
    assert len(score_ids(tmp_path / "there")) == 8


def test_damage_on_the_storage_is_named_and_its_rows_made_again(tmp_path: Path) -> None:
    storage = memory_storage(new_name())
    store = new_run(tmp_path / "run")
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
    repair(
        there, discovery(there)
    )  # there are no dialogues here, so d1 counts as made from lost ones
    assert list(RunStore(there).read("t0", "selections")) == []
    # What is missing now goes there, too, before anything new is made.
    work = start(storage, there)
    assert "part-000000.parquet" not in storage.names("t0/scores")
    add_scores(RunStore(there), 0, 1, 2)
    work.finish()
    fetch(storage, tmp_path / "third", quiet, models=True)
    assert sorted(score_ids(tmp_path / "third")) == ["d0", "d1", "d2"]


def test_a_folder_that_is_behind_may_not_overwrite_what_another_did(tmp_path: Path) -> None:
    storage = memory_storage(new_name())
    old = new_run(tmp_path / "old")
    work = start(storage, old.root)
    add_scores(old, 0)
    work.finish()
    new = tmp_path / "new"
    fetch(storage, new, quiet, models=True)
    with pytest.raises(DataError, match="is there already"):
        fetch(storage, old.root, quiet, models=True)
    work = start(storage, new)
    add_scores(RunStore(new), 1)
    work.finish()
    with pytest.raises(DataError, match="holds what this folder does not have"):
        start(storage, old.root)
    with pytest.raises(DataError, match="is there already"):  # it was worked on
        fetch(storage, new, quiet, models=True)


def test_a_second_driver_is_refused_until_it_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(parse_uri(f"file://{tmp_path}/shared/run"))
    store = new_run(tmp_path / "run")
    work = start(storage, store.root)
    code = (
        "import sys; from stargate.remote.lease import Lease\n"
        "from stargate.config.uri import StorageUri, parse_uri\n"
        "from stargate.remote.storage import open_storage\n"
        "lease = Lease(open_storage(parse_uri(sys.argv[1])), 'f' * 32)\n"
        "lease.acquire(take_over=sys.argv[2] == 'yes')"
    )
    for answer, expected in (("no", 1), ("yes", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(storage), answer], capture_output=True, text=True
        )
        assert done.returncode == expected, done.stderr
        if answer == "no":
            assert f"another driver works on this run (pid {os.getpid()} on " in done.stderr
    # The one that was taken over from notices before it announces anything, and ends the run.
    monkeypatch.setattr(sync_module._thread, "interrupt_main", lambda number: None)
    number = newest_manifest(storage)
    add_scores(store, 0)
    with pytest.raises(LeaseHeld, match="has taken over this run; this driver stops"):
        work.finish()
    assert newest_manifest(storage) == number
    # The other process is dead, on this machine: nobody has to wait for its lease.
    start(storage, store.root).finish()


class TakenStorage(Storage):
    """From some moment on the lease is another driver's."""

    holder: Mapping[str, object] | None = None
    num_beats = 0

    def read(self, name: str, max_bytes: int) -> bytes | None:
        if name == LEASE and self.holder is not None:
            return json.dumps(self.holder).encode()
        self.num_beats += name == LEASE
        return super().read(name, max_bytes)


def test_an_idle_driver_notices_with_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.01)
    interrupted = threading.Event()
    monkeypatch.setattr(sync_module._thread, "interrupt_main", lambda number: interrupted.set())
    filesystem = memory_storage(name := new_name())._filesystem
    storage, said = TakenStorage(filesystem, f"/{name}", StorageUri("memory", name)), []
    work = start(storage, new_run(tmp_path / "run").root, said.append)
    wait_for(lambda: storage.num_beats >= 5)
    assert not interrupted.is_set()
    storage.holder = {"owner": "a" * 32, "host": "elsewhere", "pid": 7, "beat": time.time()}
    assert interrupted.wait(60)
    assert "pid 7 on elsewhere has taken over this run" in said[-1]
    with pytest.raises(LeaseHeld):
        work.finish()


def test_a_lease_is_stale_by_the_storage_clock(tmp_path: Path) -> None:
    storage = open_storage(parse_uri(f"file://{tmp_path}/shared"))
    holder = {"owner": "a" * 32, "host": "elsewhere", "pid": 1, "beat": time.time() + 9e9}
    storage.put_bytes(LEASE, json.dumps(holder).encode())
    lease = Lease(storage, "b" * 32)
    with pytest.raises(LeaseHeld, match="pid 1 on elsewhere"):
        lease.require_free()
    then = time.time() - 121
    os.utime(tmp_path / "shared" / LEASE, (then, then))
    lease.require_free()


def test_a_storage_that_never_answers_stops_the_start(tmp_path: Path) -> None:
    handler = FlakyHandler()
    storage = memory_storage(new_name(), handler)
    handler.is_down = True
    with pytest.raises(StorageError, match="connection refused"):
        storage.check_writable()
    store = new_run(tmp_path / "run")
    with pytest.raises(StorageError, match="connection refused"):
        start(storage, store.root)


def test_a_manifest_can_not_name_what_is_not_of_a_run() -> None:
    content = Content("0" * 64, 1)
    for name in (
        *("../x.json", "/etc/x.json", "t0/../../x.json", "t0/scores/../../../x.parquet"),
        *("models/m1/../../x.json", "models/m1/run.py", "models/m1/pytorch_model.bin", ".lock"),
        *("models/m1/.hidden.json", "t0/scores/part-000001.pkl", "logs/driver.log", "landing.json"),
        *("evaluations/../config.yaml", "evaluations/x/../../y.json", "t0\\x.json", "x.json\n"),
    ):
        manifest = Manifest(1, "a" * 32, "host", True, {name: (content,)})
        with pytest.raises(DataError, match="no name of a record"):
            read_manifest(manifest.to_bytes(), "m")
    for name in ("t0/train.json", "t12/scores.parquet", "eval-m3/verdicts/part-000010.parquet",
                 "evaluations/a-b/eval-m0/controls.parquet", "evaluations/a/config.yaml",
                 "environment-2.json", "metrics.jsonl.damaged-1",
                 "t0/scores/part-000001.parquet.damaged-2"):  # fmt: skip
        assert is_record(name), name
    assert is_model_file("models/m1/model-00001-of-00002.safetensors")
    whole = Manifest(7, "a" * 32, "host", False, {"config.yaml": (None, content)})
    assert read_manifest(whole.to_bytes(), "m") == whole
    for cut in (0, 10, len(whole.to_bytes()) - 1):
        with pytest.raises(DataError):
            read_manifest(whole.to_bytes()[:cut], "m")


def test_a_torn_manifest_counts_as_not_written(tmp_path: Path) -> None:
    storage, said = memory_storage(new_name()), []
    store = new_run(tmp_path / "run")
    work = start(storage, store.root)
    add_scores(store, 0)
    work.finish()
    manifest = newest_manifest(storage)
    assert manifest is not None
    storage.put_bytes(manifest_name(manifest.number + 1), b'{"sha256": "')
    assert newest_manifest(storage, said.append) == manifest
    assert len(said) == 1 and "the one before it is used" in said[0]
    start(storage, store.root).finish()
    assert len(storage.names(FOLDER)) <= 2


def test_what_was_made_is_copied_after_what_it_was_made_from(tmp_path: Path) -> None:
    store = new_run(tmp_path)
    for version in (1, 2):
        folder = tmp_path / "models" / f"m{version}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    for scope in ("t0", "t1", "eval-m0", "eval-m1"):
        for table in ("dialogues", "scores", "controls"):
            (tmp_path / scope / table).mkdir(parents=True)
            (tmp_path / scope / table / "part-000001.parquet").touch()
            (tmp_path / scope / f"{table}.parquet").touch()
        (tmp_path / scope / "train.json").touch()
    store.write_json("summary.json", {})
    store.append_metrics({})
    names = [file.name for file in scan(tmp_path, models=True)]
    assert names[0] == "config.yaml" and names[-2:] == ["metrics.jsonl", "summary.json"]
    scopes = list(dict.fromkeys("/".join(name.split("/")[:-1]) for name in names[1:-2]))
    assert [s for s in scopes if s.count("/") == (1 if s.startswith("models") else 0)] == [
        *("eval-m0", "t0", "models/m1", "eval-m1", "t1", "models/m2")
    ]
    assert [name for name in names if name.startswith("t1/")] == [
        *("t1/dialogues.parquet", "t1/dialogues/part-000001.parquet"),
        *("t1/scores.parquet", "t1/scores/part-000001.parquet"),
        *("t1/controls.parquet", "t1/controls/part-000001.parquet", "t1/train.json"),
    ]
    assert not any(
        name.startswith("models/") for name in (f.name for f in scan(tmp_path, models=False))
    )


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns once it is so. The minute is for a defect, not for a busy machine."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.integers(1, 3)),
        st.tuples(st.just("compact"), st.just(0)),
        st.tuples(st.just("round"), st.just(0)),
        st.tuples(st.just("crash"), st.integers(1, 12)),  # at this call of the storage
        st.tuples(st.just("tear"), st.integers(1, 12)),
        st.tuples(st.just("move"), st.just(0)),  # the machine is lost, another one goes on
    ),
    max_size=10,
)


@settings(max_examples=20, deadline=None)
@given(_STEPS)
def test_any_writes_crashes_and_fetches_keep_rows_exactly_once(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        World(Path(folder)).play(steps)


@pytest.mark.parametrize("how", ["crash", "tear"])
def test_a_driver_killed_at_each_call_of_the_storage(tmp_path: Path, how: str) -> None:
    for call in range(1, 13):
        steps = [("rows", 2), (how, call), ("compact", 0), ("rows", 1), (how, call)]
        World(tmp_path / str(call)).play(steps)


class World:
    """A run whose driver dies and moves between machines; scores, and a selection for each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, new_name()
        self.storage = KilledStorage(self.name)
        self.num_fetched = self.num_wanted = self.num_damaged = 0
        self.settled: set[str] = set()  # scores that must be there whatever happens
        self.root = folder / "first"
        self.store = new_run(self.root)
        self.landing = self.begun()

    def begun(self) -> RemoteSync:
        work = new_sync(self.storage, self.root)
        work._lease._write()
        work._read_state()
        return work

    def play(self, steps: list[tuple[str, int]]) -> None:
        self.rounds()
        for what, number in steps:
            if what == "rows":
                self.num_wanted += number
                self.make()
            elif what == "compact":
                self.store.compact("t0")
            elif what == "round":
                self.landing._round()
                self.check(self.fetch())
            elif what in ("crash", "tear"):
                self.crash(number, tears=what == "tear")
            else:
                self.move(self.fetch())
        self.make()
        self.rounds()
        there = self.fetch()
        wanted = [f"d{i}" for i in range(self.num_wanted)]
        assert sorted(score_ids(there)) == sorted(wanted)
        assert sorted(self.selected(there)) == sorted(wanted)

    def make(self) -> None:
        """Makes all rows that are wanted and not there, as a resumed run does."""
        known, selected = set(score_ids(self.root)), set(self.selected(self.root))
        for number in range(self.num_wanted):
            if f"d{number}" not in known:
                add_scores(self.store, number)
            if f"d{number}" not in selected:
                add_selection(self.store, number)

    def rounds(self) -> None:
        while not self.landing._round():
            pass
        self.settled = set(score_ids(self.root))

    def crash(self, call: int, *, tears: bool) -> None:
        self.storage.num_calls, self.storage.dies_at = 0, call
        self.storage.tears = tears
        try:
            self.landing._round()
            self.landing._round()
        except Killed:
            pass
        finally:
            self.storage.dies_at = None
        there = self.fetch()
        if not tears:
            self.check(there)
            assert self.settled <= set(score_ids(there))
        if call % 2:  # the disk is lost as well
            self.move(there)
        else:
            self.store = RunStore(self.root)
            self.landing = self.begun()
            self.rounds()

    def fetch(self) -> Path:
        self.num_fetched += 1
        there = self.folder / f"machine-{self.num_fetched}"
        self.num_damaged = len(fetch(self.storage, there, quiet, models=True).damaged)
        return there

    def check(self, there: Path) -> None:
        assert self.num_damaged == 0
        ids, selected = score_ids(there), self.selected(there)
        assert len(ids) == len(set(ids)) and len(selected) == len(set(selected))
        assert set(selected) <= set(ids)  # nothing without what it was made from

    def move(self, there: Path) -> None:
        repair(there, discovery(there))
        ids, selected = score_ids(there), self.selected(there)
        assert len(ids) == len(set(ids)) and set(selected) <= set(ids)
        self.root, self.store = there, RunStore(there)
        self.landing = self.begun()
        self.rounds()

    @staticmethod
    def selected(root: Path) -> list[str]:
        return [row["dialogue_id"] for row in RunStore(root).read("t0", "selections")]
