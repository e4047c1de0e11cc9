"""A small run whose records land on a storage, and the waits of that shortened."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from stargate.records.schemas import record_row
from stargate.records.store import RunStore
from stargate.remote import lease, sync
from stargate.remote.fetch import fetch, note_working
from stargate.remote.lease import LEASE
from stargate.remote.manifest import Identity, new_identity, read_identity
from stargate.remote.storage import Storage
from stargate.remote.sync import RemoteSync
from stargate.types import DialogueScore, Selection


def without_pauses(monkeypatch: pytest.MonkeyPatch, first: float, longest: float) -> None:
    """Seconds between two tries; two drivers that come at once are not waited for."""
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(sync, "_FIRST_PAUSE", first)
    monkeypatch.setattr(sync, "_LONGEST_PAUSE", longest)


class Clock:
    """The time by which a sync knows that nothing moves: it passes as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep)
        monkeypatch.setattr(sync, "time", fake)

    def passes(self, seconds: float) -> None:
        self.now += seconds


def quiet(text: str) -> None:
    pass


def new_run(root: Path) -> RunStore:
    root.mkdir(parents=True, exist_ok=True)
    store = RunStore(root)
    store.write_text("config.yaml", "name: run\n")
    return store


def add_scores(store: RunStore, *numbers: int) -> None:
    for number in numbers:
        row = record_row(DialogueScore(f"d{number}", "p", -1.5, 3))
        asyncio.run(store.append("t0", "scores", [row]))


def add_selection(store: RunStore, number: int) -> None:
    row = record_row(Selection(f"p{number}", f"d{number}", -1.0, (f"d{number}",), (-1.0,)))
    asyncio.run(store.append("t0", "selections", [row]))


def score_ids(root: Path) -> list[str]:
    return [row["dialogue_id"] for row in RunStore(root).read("t0", "scores")]


def fetched_ids(storage: Storage, root: Path) -> list[str]:
    """The scores that another machine gets, and it gets all files whole."""
    fetched = fetch(storage, root, quiet, models=True)
    assert fetched.damaged == ()
    return score_ids(root)


def new_sync(
    storage: Storage,
    root: Path,
    say: Callable[[str], None] = quiet,
    interval_s: float = 0.05,
    deadline_s: float = 20.0,
) -> RemoteSync:
    """That of a folder which a process begins to work on."""
    identity: Identity = read_identity(root) or new_identity(str(storage))
    identity.write(root)
    note_working(root)
    return RemoteSync(
        storage, root, identity, say, models=True, interval_s=interval_s, deadline_s=deadline_s
    )


def start(storage: Storage, root: Path, say: Callable[[str], None] = quiet) -> RemoteSync:
    work = new_sync(storage, root, say)
    work.begin()
    return work


def land_and_merge(storage: Storage, root: Path, say: Callable[[str], None] = quiet) -> RunStore:
    """Two sittings: the second merges what the first one landed, and one row more comes."""
    storage.check_writable()
    store = new_run(root)
    work = start(storage, root, say)
    add_scores(store, 0, 1)
    work.finish()
    assert len(storage.names("t0/scores")) == 2
    work = start(storage, root, say)
    store.compact("t0")
    add_scores(store, 2)
    work.finish()
    assert storage.names("t0/scores") == ["part-000002.parquet"]
    assert storage.names("t0") == ["scores.parquet"]
    assert storage.read(LEASE, 1000) is None and storage.modified("config.yaml") is not None
    return store
