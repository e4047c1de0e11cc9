"""Lands a run's records on shared storage, as they are finished, from a thread of its own.

    every few seconds:  scan the run directory -> what is new, in the order in which it was made
        for each batch: manifest (these files may now change) -> the files
        then:           manifest (these may go)               -> delete what a merge has replaced
        when all is there: manifest (everything is settled)

Nothing waits for it: records are durable on the driver's disk before, and the directory itself is
the queue, so an outage of hours costs no memory, and whatever a crash left behind is found by the
next scan. Only the start waits, so that what an earlier sitting left is put in order there before
anything new comes (put_in_order removes rows that are then made again), and the end.

A reader at any moment finds each row at least once, since a part is deleted only when the merged
file that has its rows, and everything else of that scan, has landed and is settled in a manifest;
and never twice, since a merged file says which parts are in it (store.py). A part counts as gone
when two scans in a row have missed it: the first of them may have passed the merged file's place
before it was there.
"""

import _thread
import hashlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from stargate.errors import DataError, MachineError, one_line
from stargate.monitoring.waiting import Waiting
from stargate.records.files import read_exactly
from stargate.remote.lease import Lease, LeaseHeld
from stargate.remote.manifest import (
    Content,
    Identity,
    Manifest,
    States,
    manifest_name,
    manifest_numbers,
    newest_manifest,
)
from stargate.remote.scan import LocalFile, batches_of, opened_files, scan
from stargate.remote.storage import Storage, StorageError

_log = logging.getLogger(__name__)
# Seconds between two tries while the storage does not answer, from the first to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
# Between two looks of whoever waits; each makes the thread go on at once.
_WAIT_SECONDS = 0.05
# Seconds that an interrupted run waits for the rest.
INTERRUPTED_SECONDS = 30.0
_NAMED = 3


class RemoteSync:
    """Copies one run directory. `begin`, then `finish` or `give_up`."""

    def __init__(
        self,
        storage: Storage,
        root: Path,
        identity: Identity,
        say: Callable[[str], None],
        *,
        models: bool,
        interval_s: float,
        deadline_s: float,
    ) -> None:
        self._storage, self._root, self._identity, self._say = storage, root, identity, say
        self._models, self._interval, self._deadline = models, interval_s, deadline_s
        self._lease = Lease(storage, identity.owner)
        self._number = 0
        self._files: dict[str, States] = {}  # what may be there, by name
        self._landed: dict[str, LocalFile] = {}  # as they were when they landed
        self._missed: frozenset[str] = frozenset()  # what the last scan did not find
        self._is_settled = False  # the newest manifest says that everything is there
        self._found: list[LocalFile] = []  # what the last scan saw
        self._problem = ""
        self._failed: Exception | None = None  # why the thread has ended
        self._is_awaited = False
        self._moved_at = time.monotonic()
        self._reached: dict[str, int] = {}  # bytes that ever went, of files that have not landed
        self._wake = threading.Event()
        self._stopped = False
        self._num_begun = self._idle_round = 0  # rounds
        self._thread = threading.Thread(target=self._work, name="landing", daemon=True)

    def begin(self, *, take_over: bool = False) -> None:
        """Takes the lease, and waits until the storage has all that the directory has.

        Raises LeaseHeld; DataError if the storage holds another run, or a later state of this one;
        StorageError if it does not answer within the deadline.
        """
        self._lease.acquire(take_over=take_over)
        try:
            self._read_state()
            self._thread.start()
            self._await_idle(self._deadline, "before it starts")
        except BaseException:
            self.give_up()
            raise

    def finish(self, seconds: float | None = None) -> None:
        """Waits until all is there. Raises StorageError, which names what is not, or LeaseHeld."""
        try:
            self._await_idle(self._deadline if seconds is None else seconds, "at its end")
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Stops at once, and gives the lease back if the storage answers."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)  # it may hang in an upload; it is a daemon
        if self._thread.is_alive() or self._problem or self._failed is not None:
            self._lease.abandon()
            return
        with suppress(StorageError):  # then it becomes stale by itself
            self._lease.release()

    def _read_state(self) -> None:
        """What is there already, from its newest manifest."""
        manifest = newest_manifest(self._storage)
        if manifest is None:
            return
        came_from = (manifest.owner, manifest.number)
        if manifest.owner != self._identity.owner and came_from != self._identity.seen:
            raise DataError(
                f"{self._storage}: holds what this folder does not have, written by "
                f"{manifest.host}; go on from there: stargate resume '{self._storage}' --to DIR"
            )
        self._number = manifest.number
        self._files = dict(manifest.files)

    def _work(self) -> None:
        pause, lost_at = _FIRST_PAUSE, 0.0
        while not self._stopped:
            self._num_begun += 1
            try:
                is_idle = self._round()
            except LeaseHeld as error:
                self._stop_driver(error)
                return
            except (StorageError, MachineError, OSError, MemoryError) as error:
                problem = one_line(error) or "no memory"
                if not self._problem:
                    lost_at = time.monotonic()
                    self._tell(f"{problem}; records stay in {self._root}, trying again")
                self._problem = problem
                self._wake.wait(pause)
                self._wake.clear()
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            except Exception as error:  # a defect: whoever waits for this thread must hear of it
                self._failed = error
                raise
            if self._problem:
                away = time.monotonic() - lost_at
                self._problem = ""
                self._tell(f"{self._storage}: takes records again, after {away:.0f} s")
            pause = _FIRST_PAUSE
            if is_idle:
                self._idle_round = self._num_begun
            self._wake.wait(self._interval)
            self._wake.clear()

    def _tell(self, text: str) -> None:
        _log.warning(text)
        self._say(f"shared storage: {text}")

    def _stop_driver(self, error: LeaseHeld) -> None:
        """Ends the run as Ctrl-C does: two drivers must not go on with it."""
        self._failed = error
        if not self._stopped and not self._is_awaited:
            self._tell(str(error))
            _thread.interrupt_main(signal.SIGINT)

    def _await_idle(self, seconds: float, when: str) -> None:
        """Until a round that begins from now on has found nothing left to do."""
        self._is_awaited = True
        wanted = self._num_begun + 1
        self._moved_at = time.monotonic()
        waiting = Waiting(self._say)
        while self._idle_round < wanted:
            self._wake.set()
            time.sleep(_WAIT_SECONDS)
            if self._failed is not None:
                raise self._failed
            if time.monotonic() - self._moved_at > seconds:
                raise StorageError(
                    f"{self._storage}: no record landed within {seconds:.0f} s {when}; not there: "
                    f"{self._left()}; they are in {self._root}, and `stargate resume {self._root}` "
                    "lands them"
                )
            waiting.speak(f"waiting for shared storage: still to land: {self._left()}")
        self._is_awaited = False

    def _left(self) -> str:
        left = [file.name for file in self._changed(self._found)]
        names = ", ".join(left[:_NAMED]) or "what the run directory has"
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        return names + more + (f" ({self._problem})" if self._problem else "")

    def _changed(self, files: Sequence[LocalFile]) -> list[LocalFile]:
        return [file for file in files if self._landed.get(file.name) != file]

    def _round(self) -> bool:
        """One scan and what follows from it. Returns whether there was nothing to do."""
        self._lease.require_kept()
        self._found = scan(self._root, models=self._models)
        changed = self._changed(self._found)
        gone = frozenset(self._files) - {file.name for file in self._found}
        if not self._models:  # what an earlier sitting landed stays
            gone = frozenset(name for name in gone if not name.startswith("models/"))
        doomed = sorted(gone & self._missed)
        for batch in batches_of(changed):
            if not self._land(batch):
                return False  # a file changed since: what comes after it may be made from it
        # Only now, when all that was found in this scan is there, does this scan count as one that
        # has missed them.
        self._missed = gone
        if doomed:
            self._delete(doomed)
        if changed or gone:
            return False
        if not self._is_settled:
            self._write_manifest(is_complete=True)
        return True

    def _land(self, batch: Sequence[LocalFile]) -> bool:
        """Copies files in order. Returns False if it stopped before one that has changed."""
        with opened_files(batch) as opened:
            contents = [content_of(file, source) for file, source in opened]
            new = {
                file.name: content
                for (file, _), content in zip(opened, contents, strict=True)
                if self._files.get(file.name) != (content,)
            }
            if new:
                self._announce(new)
            for file, source in opened:
                if file.name in new:
                    source.seek(0)
                    self._put(file.name, source, new[file.name])
                self._landed[file.name] = file
                if self._stopped:
                    return False
            return len(opened) == len(batch)

    def _put(self, name: str, source: BinaryIO, content: Content) -> None:
        position = 0

        def moved(num_bytes: int) -> None:
            # Bytes that went before and were lost again are no progress.
            nonlocal position
            position += num_bytes
            if position > self._reached.get(name, 0):
                self._reached[name] = position
                self._moved_at = time.monotonic()

        self._storage.put(name, source, content.size, moved)
        self._files[name] = (content,)
        self._reached.pop(name, None)

    def _delete(self, names: Sequence[str]) -> None:
        self._announce(dict.fromkeys(names))
        for name in names:
            self._storage.delete(name)
            del self._files[name]
            self._landed.pop(name, None)

    def _announce(self, states: Mapping[str, Content | None]) -> None:
        """Says what is to be changed, before it is."""
        for name, state in states.items():
            before = self._files.get(name, (None,))
            self._files[name] = before if state in before else (*before, state)
        self._write_manifest(is_complete=False)

    def _write_manifest(self, *, is_complete: bool) -> None:
        self._lease.check()
        self._number += 1  # never the same again, whether or not it gets there
        manifest = Manifest(
            self._number, self._identity.owner, socket.gethostname(), is_complete, self._files
        )
        self._storage.put_bytes(manifest_name(self._number), manifest.to_bytes())
        self._is_settled = is_complete
        for number in manifest_numbers(self._storage):
            if number < self._number - 1:
                self._storage.delete(manifest_name(number))


def content_of(file: LocalFile, source: BinaryIO) -> Content:
    """Checksum of the bytes that the scan saw: metrics.jsonl may have grown since."""
    sha256 = hashlib.sha256()
    for chunk in read_exactly(source, file.size):
        sha256.update(chunk)
    return Content(sha256.hexdigest(), file.size)
