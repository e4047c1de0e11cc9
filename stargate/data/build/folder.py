"""The folder that a build writes: OUT.partial while it grows, OUT once it is whole.

.OUT.build.lock   held by the one process that builds; the system drops it when that dies
OUT.partial/      build.json (what is built), tasks, personas (as soon as complete), golds
OUT/              the same, renamed, with build-report.json
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from stargate.data.blemishes import write_json
from stargate.data.build.golds import GOLDS, MISSING, SPOOL, UNFINISHED
from stargate.data.dataset import read_dataset
from stargate.data.writing import persona_row, task_row, write_jsonl
from stargate.errors import DataError
from stargate.records.files import sync, write_atomically
from stargate.types import Persona, Task

REPORT, _IDENTITY, _SOURCES = "build-report.json", "build.json", "sources.json"
_TASKS, _PERSONAS = "tasks.jsonl", "personas.jsonl"
# What a partial folder may hold: anything else was not written by a build.
_OURS = frozenset(
    (REPORT, _IDENTITY, _SOURCES, _TASKS, _PERSONAS, GOLDS, UNFINISHED, MISSING, SPOOL)
)


class BuildFolder:
    """OUT and OUT.partial of one build. `identity` is what decides the result, part by part."""

    def __init__(self, out: Path, identity: Mapping[str, str]) -> None:
        self.out = out
        self.partial = out.with_name(f"{out.name}.partial")
        self._identity = dict(identity)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process builds OUT. Raises DataError at once when another does."""
        file = self.out.with_name(f".{self.out.name}.build.lock")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = _lock(file)
        except BlockingIOError:
            raise DataError(f"{self.out}: another process is building it right now") from None
        except OSError as error:
            raise DataError(f"{self.out}: can't be written: {error.strerror}") from error
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            os.close(handle)

    def is_finished(self) -> bool:
        """Whether OUT is this very build, whole. Raises DataError if OUT is something else."""
        if not self.out.exists() and not self.out.is_symlink():
            return False
        report = self.out / REPORT
        if self.out.is_symlink() or not report.is_file():
            raise DataError(f"{self.out}: exists already and is no build; choose another out")
        self._check_same(_read(report).get("identity"), self.out)
        self._tidy()
        return True

    def begin(self) -> bool:
        """Opens or makes OUT.partial. Returns whether it was begun before. Raises DataError."""
        if self.partial.is_symlink() or (self.partial.exists() and not self.partial.is_dir()):
            raise DataError(f"{self.partial}: is no folder of a build; move it away")
        self.partial.mkdir(exist_ok=True)
        foreign = sorted(
            f.name for f in self.partial.iterdir() if f.name not in _OURS and not _is_temporary(f)
        )
        if foreign:
            raise DataError(f"{self.partial}: holds {foreign[0]}, which no build writes")
        identity = self.partial / _IDENTITY
        if identity.is_file():
            self._check_same(_read(identity).get("identity"), self.partial)
            # Golds are always made anew, from the cache.
            (self.partial / GOLDS).unlink(missing_ok=True)
            return True
        write_atomically(identity, lambda file: write_json(file, {"identity": self._identity}))
        return False

    def keep_sources(
        self,
        tasks: list[Task],
        personas: list[Persona],
        origins: Mapping[str, tuple[str, ...]],
        report: Mapping[str, Any],
    ) -> None:
        """Keeps tasks and personas. sources.json is written last: it says that they are whole."""
        rows = {
            _TASKS: [task_row(task) for task in tasks],
            _PERSONAS: [persona_row(p, origins.get(p.id, ())) for p in personas],
        }
        for name, kept in rows.items():
            write_atomically(self.partial / name, partial(write_jsonl, rows=kept))
        write_atomically(self.partial / _SOURCES, lambda file: write_json(file, report))

    def sources(self) -> tuple[list[Task], list[Persona], dict[str, Any]] | None:
        """Tasks, personas and their report, if a former run has completed them."""
        if not (self.partial / _SOURCES).is_file():
            return None
        dataset = read_dataset(self.partial, partial=True)
        report = _read(self.partial / _SOURCES)
        return list(dataset.tasks.values()), list(dataset.personas.values()), report

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Writes build-report.json into OUT.partial."""
        content = {"identity": self._identity, **report}
        write_atomically(self.partial / REPORT, lambda file: write_json(file, content))

    def finish(self) -> None:
        """Renames the whole folder to OUT, durably. What is ours alone is removed after that: a
        run that is killed here leaves a whole folder, never one that has forgotten what it is.
        """
        for file in self.partial.iterdir():
            sync(file)
        sync(self.partial)
        self.partial.rename(self.out)
        sync(self.out.parent)
        self._tidy()

    def _tidy(self) -> None:
        for file in list(self.out.iterdir()):
            if file.name in (_IDENTITY, _SOURCES) or _is_temporary(file):
                file.unlink(missing_ok=True)

    def _check_same(self, found: Any, where: Path) -> None:
        found = found if isinstance(found, dict) else {}
        differs = [name for name, part in self._identity.items() if found.get(name) != part]
        if differs:
            raise DataError(
                f"{where}: was built from another config or other inputs (they differ in: "
                f"{', '.join(differs)}); choose another out, or delete that folder: what is paid "
                "stays in the cache"
            )


def _lock(file: Path) -> int:
    """An open handle that holds the lock on `file`. Raises BlockingIOError if another has it."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had the lock before deletes the file: ours must still be the one that others find.
            if os.fstat(handle).st_ino == os.stat(file).st_ino:
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_temporary(file: Path) -> bool:
    """A file of `write_atomically` that a killed run left."""
    return file.name.startswith(".") and file.name.endswith(".tmp")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected an object, got {type(content).__name__}")
    return content
