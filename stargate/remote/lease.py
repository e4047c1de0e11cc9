"""Who lands a run's records: one driver at a time, by a file with its name and a heartbeat.

    URI/NAME/_landing/lease.json   {"owner", "host", "pid", "beat"}

Shared storage, as pyarrow sees it, can't write "only if nobody else has", so this is a lease and no
lock. It refuses a second driver while the first one's heartbeat is fresh, and tells a driver that
it was taken over from before it announces anything more. It can't stop a driver that is between two
looks at it: see docs/clusters.md for what that means.

Whether a heartbeat is fresh is measured by the storage's clock, if it tells times, so that clocks
of two machines need not agree.
"""

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter

from stargate.records.files import is_alive
from stargate.remote.manifest import FOLDER
from stargate.remote.storage import Storage, StorageError

LEASE = f"{FOLDER}/lease.json"
# Seconds between heartbeats, and without one after which a lease is stale.
_BEAT_SECONDS = 20.0
_STALE_SECONDS = 120.0
# After this long a lease that was written is looked at again: of two that are written at the same
# time the last one counts.
_SETTLE_SECONDS = 1.0
_MAX_BYTES = 10_000


class LeaseHeld(StorageError):
    """Another driver lands this run's records."""


@dataclass(frozen=True, slots=True)
class Holder:
    """`owner` is a random name of a run directory, of which there may be copies."""

    owner: str
    host: Annotated[str, Field(max_length=200)]
    pid: int
    beat: float  # by the holder's clock

    @property
    def is_this_process(self) -> bool:
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    @property
    def is_dead(self) -> bool:
        """Whether it was a process of this machine that no longer lives."""
        return self.host == socket.gethostname() and not is_alive(self.pid)

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


class Lease:
    """The lease of one run on shared storage, for one driver."""

    def __init__(self, storage: Storage, owner: str) -> None:
        self._storage = storage
        self._owner = owner
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: LeaseHeld | None = None  # what a heartbeat has found

    def acquire(self, *, take_over: bool) -> None:
        """Takes it and keeps it fresh. Raises LeaseHeld, StorageError."""
        if not take_over:
            self.require_free()
        self._write()
        time.sleep(_SETTLE_SECONDS)
        self.check()
        self._thread = threading.Thread(target=self._keep_fresh, name="lease", daemon=True)
        self._thread.start()

    def require_free(self) -> None:
        """Raises LeaseHeld if another driver has it, and was seen lately."""
        holder = self.holder()
        # A dead process on this machine left no other: whoever has the pid now is not ours.
        if holder is None or holder.is_dead or holder.is_this_process:
            return
        if (age := self._age(holder)) <= _STALE_SECONDS:
            raise LeaseHeld(
                f"{self._storage}: another driver works on this run ({holder}, seen "
                f"{age:.0f} s ago); end it, or wait until it has not been seen for "
                f"{_STALE_SECONDS:.0f} s, or, if it is surely dead, add --take-over"
            )

    def check(self) -> None:
        """Raises LeaseHeld if another driver has taken over."""
        holder = self.holder()
        if holder is None:
            raise LeaseHeld(f"{self._storage}: the lease of this run was removed by someone")
        if holder.owner != self._owner or not holder.is_this_process:
            raise LeaseHeld(f"{self._storage}: {holder} has taken over this run; this driver stops")

    def require_kept(self) -> None:
        """Raises LeaseHeld if a heartbeat has found that another driver has it. Asks nobody."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Gives it back, if it is still ours."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=_BEAT_SECONDS)
        self.check()
        self._storage.delete(LEASE)

    def abandon(self) -> None:
        """Stops the heartbeat without asking the storage anything."""
        self._stopped.set()

    def holder(self) -> Holder | None:
        """Who has it; None if nobody. A file that is none of ours holds nothing."""
        content = self._storage.read(LEASE, _MAX_BYTES)
        if content is None:
            return None
        try:
            return TypeAdapter(Holder).validate_json(content)
        except ValueError:
            return None

    def is_shared(self) -> bool:
        """Whether another living process on this machine has it, for the same run directory."""
        holder = self.holder()
        if holder is None or holder.owner != self._owner or holder.is_this_process:
            return False
        return holder.host == socket.gethostname() and not holder.is_dead

    def _age(self, holder: Holder) -> float:
        """Seconds since the last heartbeat."""
        now, beat = self._storage.now(), self._storage.modified(LEASE)
        if now is None or beat is None:
            now, beat = time.time(), holder.beat
        return max(now - beat, 0.0)

    def _write(self) -> None:
        holder = Holder(self._owner, socket.gethostname(), os.getpid(), time.time())
        self._storage.put_bytes(LEASE, json.dumps(asdict(holder)).encode())

    def _keep_fresh(self) -> None:
        while not self._stopped.wait(_BEAT_SECONDS):
            try:
                self.check()
                self._write()
            except LeaseHeld as error:
                self._lost = error
                return
            except StorageError:
                continue  # an outage: sync.py says so
