"""One driver works on a run on shared storage: who comes second is refused, or takes over."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from stargate.config.uri import parse_uri
from stargate.records.store import RunStore
from stargate.remote import lease as lease_module
from stargate.remote import sync as sync_module
from stargate.remote.lease import LEASE, Lease, LeaseHeld
from stargate.remote.manifest import (
    newest_manifest,
)
from stargate.remote.storage import Storage, StorageError, open_storage
from tests.fakes.clock import wait_for
from tests.fakes.flaky_storage import FlakyHandler, memory_storage
from tests.fakes.remote_run import (
    add_scores,
    start,
)


def test_a_second_driver_is_refused_until_it_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    storage = open_storage(parse_uri(f"file://{tmp_path}/shared/run"))
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
    monkeypatch: pytest.MonkeyPatch, store: RunStore
) -> None:
    monkeypatch.setattr(lease_module, "_BEAT_SECONDS", 0.01)
    interrupted = threading.Event()
    monkeypatch.setattr(sync_module._thread, "interrupt_main", lambda number: interrupted.set())
    storage, said = memory_storage(kind=TakenStorage), []
    work = start(storage, store.root, said.append)
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


def test_a_storage_that_never_answers_stops_the_start(
    handler: FlakyHandler, storage: Storage, store: RunStore
) -> None:
    handler.is_down = True
    with pytest.raises(StorageError, match="connection refused"):
        storage.check_writable()
    with pytest.raises(StorageError, match="connection refused"):
        start(storage, store.root)
