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
from dataclasses import dataclass, field, replace
from pathlib import Path

from stargate.errors import DataError
from stargate.records.files import (
    disk_errors,
    make_folder,
    read_json,
    set_aside,
    whole_folder,
    write_text,
)
from stargate.records.store import METRICS
from stargate.remote.identity import new_identity, read_identity
from stargate.remote.manifest import FETCHED_FILE, Content, Manifest, States, is_model_file
from stargate.remote.storage import Storage, StorageError
from stargate.remote.sync import newest_manifest

# How often a file is read that the storage does not give, and seconds between.
_TRIES, _PAUSE = 5, 1.0
# How often a newer manifest is looked for while a run goes on.
_NEWER = 20
_SPEAK_SECONDS = 30.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came. `damaged` are (name, problem, new name) of what was set aside."""

    root: Path
    num_files: int
    num_bytes: int
    is_complete: bool
    damaged: tuple[tuple[str, str, str], ...] = ()


@dataclass
class _Fetch:
    """A fetch in progress."""

    storage: Storage
    folder: Path
    say: Say
    models: bool
    got: dict[str, Content | None] = field(default_factory=dict)
    spoken: float = field(default_factory=time.monotonic)
    num_bytes: int = 0


def fetch(storage: Storage, root: Path, say: Say, *, models: bool) -> Fetched:
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
        work = _Fetch(storage, folder, say, models)
        manifest, damaged = _fetch_all(work, manifest)
        return _settle(work, manifest, root, damaged)


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


def _fetch_all(
    work: _Fetch, manifest: Manifest
) -> tuple[Manifest, list[tuple[str, Content | None, str]]]:
    """Returns the manifest that what came is a state of, and what is damaged in it."""
    for _ in range(_NEWER):
        problems: list[tuple[str, Content | None, str]] = []
        for name, states in manifest.files.items():
            if is_model_file(name) and not work.models:
                continue
            if name not in work.got or work.got[name] not in states:
                work.got[name] = _fetch_file(work, name)
            if (problem := _problem(work.got[name], states)) is not None:
                problems.append((name, work.got[name], problem))
        newer = newest_manifest(work.storage)
        if newer is None or newer.number == manifest.number:
            if _is_still(work, manifest):
                return manifest, problems
            continue
        manifest = newer
        # What may have changed is compared again, with what is there now.
        work.got = {n: c for n, c in work.got.items() if manifest.files.get(n) == (c,)}
    raise StorageError(
        f"{work.storage}: the run writes faster than it is read here; try again later, or without "
        "its models"
    )


def _is_still(work: _Fetch, manifest: Manifest) -> bool:
    """Whether all files that may be changing are what they were when they were read.

    The manifest allows more than one state of them, and those of two files belong together only
    if nobody went on between: then there was a moment at which all were as they came.
    """
    changed = False
    for name, states in manifest.files.items():
        if len(states) > 1 and name in work.got:
            before, work.got[name] = work.got[name], _fetch_file(work, name)
            changed |= work.got[name] != before
    return not changed


def _problem(found: Content | None, states: States) -> str | None:
    if found in states:
        return None
    return "is missing" if found is None else "its checksum does not match"


def _fetch_file(work: _Fetch, name: str) -> Content | None:
    """Reads a file into its place; None if it is not there."""
    for number in range(_TRIES):
        try:
            return _read_file(work, name)
        except StorageError as error:
            if number == _TRIES - 1:
                raise
            work.say(f"{error}; trying again")
            time.sleep(_PAUSE * 2**number)
    raise AssertionError("the last try raises")


def _read_file(work: _Fetch, name: str) -> Content | None:
    # Names come from a manifest that was checked: they can't lead out of the folder.
    place = work.folder / name
    place.unlink(missing_ok=True)
    sha256, size = hashlib.sha256(), 0
    with work.storage.reading(name) as chunks:
        if chunks is None:
            return None
        with disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    sha256.update(chunk)
                    size += len(chunk)
                    work.num_bytes += len(chunk)
                    if time.monotonic() - work.spoken > _SPEAK_SECONDS:
                        work.spoken = time.monotonic()
                        work.say(
                            f"fetching: {len(work.got)} files, {work.num_bytes / 2**20:,.0f} MiB"
                        )
    return Content(sha256.hexdigest(), size)


def _settle(
    work: _Fetch,
    manifest: Manifest,
    root: Path,
    problems: list[tuple[str, Content | None, str]],
) -> Fetched:
    """Sets damaged files aside and says where the folder is from."""
    listed = {name for name, content in work.got.items() if name in manifest.files and content}
    for path in work.folder.rglob("*"):
        if path.is_file() and path.relative_to(work.folder).as_posix() not in listed:
            path.unlink()  # it was there in an earlier manifest only
    aside = []
    for name, content, problem in problems:
        if name == "config.yaml":
            raise DataError(f"{work.storage}: {name} {problem}: the run can't be used")
        place = work.folder / name
        if content is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        aside.append((name, problem, set_aside(place).name))
        if place.name == METRICS and content is not None:
            # Its good lines are kept, as in repair.py: `resume` removes the others.
            shutil.copyfile(place.with_name(aside[-1][2]), place)
    summary = work.folder / "summary.json"
    if problems and (values := _object(summary)) is not None:
        # Else a run whose rows must be made again would look finished.
        values = {**values, "status": "stopped: damaged files"}
        write_text(summary, json.dumps(values, indent=2) + "\n")
    (work.folder / "logs").mkdir(exist_ok=True)
    (work.folder / "models").mkdir(exist_ok=True)
    new_identity(str(work.storage), (manifest.owner, manifest.number)).write(work.folder)
    (work.folder / FETCHED_FILE).write_text(json.dumps({"models": work.models}) + "\n", "utf-8")
    found = Fetched(root, len(listed), work.num_bytes, manifest.is_complete)
    return replace(found, damaged=tuple(aside))


def _object(file: Path) -> dict[str, object] | None:
    try:
        return read_json(file)
    except DataError:
        return None
