"""Brings a run from shared storage into a folder, for a machine that has never seen it.

    newest manifest -> every file into a hidden folder beside the target, its checksum compared
                    -> damaged ones set aside as NAME.damaged-N -> the folder gets its name

The folder has its name only when it is whole, so a fetch that was killed leaves nothing that looks
like a run. Damaged and missing files are named; `stargate resume` makes their rows again, as it
does for files that a bad disk has damaged (a missing one leaves an empty NAME.damaged-N, so that it
knows). A run that is still being written is read too: a file that is not what the manifest says is
looked up in a newer one first.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stargate.errors import DataError
from stargate.monitoring.waiting import Waiting
from stargate.records.files import (
    disk_errors,
    make_folder,
    read_json,
    set_aside,
    whole_folder,
    write_text,
)
from stargate.records.store import METRICS
from stargate.remote.manifest import (
    Content,
    Manifest,
    new_identity,
    newest_manifest,
    read_identity,
)
from stargate.remote.scan import FETCHED_FILE, is_model_file
from stargate.remote.storage import Storage, StorageError

# Seconds after each try to read a file that the storage does not give, but the last.
_PAUSES = (1.0, 2.0, 4.0, 8.0)
# How often a newer manifest is looked for while a run goes on.
_NEWER = 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came. `damaged` are (name, problem, new name) of what was set aside."""

    root: Path
    num_files: int
    num_bytes: int
    is_complete: bool
    damaged: tuple[tuple[str, str, str], ...] = ()


def fetch(storage: Storage, root: Path, say: Callable[[str], None], *, models: bool) -> Fetched:
    """Fetches a run into `root`, which is not there, or was fetched from the same place before.

    Raises DataError if `root` is something else, or the storage holds no run; StorageError.
    """
    root = Path(os.path.abspath(root))
    _check_target(root, str(storage))
    manifest = newest_manifest(storage, say)
    if manifest is None or "config.yaml" not in manifest.files:
        raise DataError(f"{storage}: holds no run that landed its records there")
    make_folder(root.parent)
    with disk_errors(root), whole_folder(root) as folder:
        return _Fetch(storage, folder, say, models, manifest).run(root)


def note_working(root: Path) -> None:
    """From now on the folder has what the storage has not, and is not fetched anew."""
    (root / FETCHED_FILE).unlink(missing_ok=True)


def _check_target(root: Path, uri: str) -> None:
    if not root.exists():
        return
    if (root / FETCHED_FILE).is_file():
        identity = read_identity(root)
        if identity is not None and identity.uri == uri:
            return
    raise DataError(
        f"{root}: is there already: use it by its name, or name another folder with --to DIR"
    )


class _Fetch:
    """A fetch in progress. `manifest` is what came is, or shall be, a state of."""

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        say: Callable[[str], None],
        models: bool,
        manifest: Manifest,
    ) -> None:
        self._storage, self._folder, self._say = storage, folder, say
        self._models, self._manifest = models, manifest
        self._got: dict[str, Content | None] = {}
        self._num_bytes = self._num_rounds = 0
        self._waiting = Waiting(say)

    def run(self, root: Path) -> Fetched:
        """Fills the folder, which will be `root`."""
        while not self._is_one_state():
            pass
        listed = {name for name, content in self._got.items() if content is not None}
        for path in self._folder.rglob("*"):
            if path.is_file() and path.relative_to(self._folder).as_posix() not in listed:
                path.unlink()  # it was there in an earlier manifest only
        damaged = self._set_aside()
        for name in ("logs", "models"):
            (self._folder / name).mkdir(exist_ok=True)
        came_from = (self._manifest.owner, self._manifest.number)
        new_identity(str(self._storage), came_from).write(self._folder)
        write_text(self._folder / FETCHED_FILE, json.dumps({"models": self._models}) + "\n")
        is_complete = self._manifest.is_complete
        return Fetched(root, len(listed), self._num_bytes, is_complete, damaged)

    def _is_one_state(self) -> bool:
        """Reads what is not there yet. Returns whether all that came is a state of the manifest,
        which is the newest.
        """
        self._num_rounds += 1
        if self._num_rounds > _NEWER:
            raise StorageError(
                f"{self._storage}: the run writes faster than it is read here; try again later, or "
                "without its models"
            )
        for name, states in self._manifest.files.items():
            wanted = self._models or not is_model_file(name)
            if wanted and (name not in self._got or self._got[name] not in states):
                self._got[name] = self._fetch_file(name)
        newer = newest_manifest(self._storage)
        if newer is None or newer.number == self._manifest.number:
            return self._is_still()
        self._manifest = newer
        # What may have changed is compared again, with what is there now.
        self._got = {n: c for n, c in self._got.items() if newer.files.get(n) == (c,)}
        return False

    def _is_still(self) -> bool:
        """Whether all files that may be changing are what they were when they were read.

        The manifest allows more than one state of them, and those of two files belong together only
        if nobody went on between: then there was a moment at which all were as they came.
        """
        changing = [n for n, states in self._manifest.files.items() if len(states) > 1]
        before = {name: self._got[name] for name in changing if name in self._got}
        self._got |= {name: self._fetch_file(name) for name in before}
        return all(self._got[name] == content for name, content in before.items())

    def _fetch_file(self, name: str) -> Content | None:
        """Reads a file into its place; None if it is not there."""
        for pause in _PAUSES:
            try:
                return self._read_file(name)
            except StorageError as error:
                self._say(f"{error}; trying again")
                time.sleep(pause)
        return self._read_file(name)

    def _read_file(self, name: str) -> Content | None:
        # Names come from a manifest that was checked: they can't lead out of the folder.
        place = self._folder / name
        place.unlink(missing_ok=True)
        sha256, size = hashlib.sha256(), 0
        with self._storage.reading(name) as chunks:
            if chunks is None:
                return None
            with disk_errors(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                        sha256.update(chunk)
                        size += len(chunk)
                        self._num_bytes += len(chunk)
                        mib = self._num_bytes / 2**20
                        self._waiting.speak(f"fetching: {len(self._got)} files, {mib:,.0f} MiB")
        return Content(sha256.hexdigest(), size)

    def _set_aside(self) -> tuple[tuple[str, str, str], ...]:
        """Sets damaged files aside, and returns them as `Fetched.damaged`."""
        aside = []
        for name, content in self._got.items():
            if content in self._manifest.files[name]:
                continue
            problem = "is missing" if content is None else "its checksum does not match"
            if name == "config.yaml":
                raise DataError(f"{self._storage}: {name} {problem}: the run can't be used")
            place = self._folder / name
            if content is None:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            aside.append((name, problem, set_aside(place).name))
            if place.name == METRICS and content is not None:
                # Its good lines are kept, as in repair.py: `resume` removes the others.
                shutil.copyfile(place.with_name(aside[-1][2]), place)
        summary = self._folder / "summary.json"
        with suppress(DataError):  # one that is damaged does not look finished
            if aside and (values := read_json(summary)) is not None:
                # Else a run whose rows must be made again would look finished.
                values["status"] = "stopped: damaged files"
                write_text(summary, json.dumps(values, indent=2) + "\n")
        return tuple(aside)
