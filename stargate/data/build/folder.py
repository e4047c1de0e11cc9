"""The folder that a build writes: OUT.partial while it grows, OUT once it is whole.

.OUT.build.lock   held by the one process that builds; the system drops it when that dies
OUT.partial/      build.json (what is built), tasks, personas (as soon as complete), golds
OUT/              the same, renamed, with build-report.json
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stargate.data.build.golds import GOLDS, MISSING, SPOOL
from stargate.data.dataset import Dataset, read_dataset
from stargate.data.writing import dataset_rows, write_json, write_jsonl
from stargate.errors import DataError
from stargate.records.files import publish_folder, read_json, write_atomically

REPORT, _IDENTITY, _SOURCES = "build-report.json", "build.json", "sources.json"
# What a partial folder may hold, besides what `write_atomically` has begun: anything else was not
# written by a build.
_OURS = frozenset(
    (REPORT, _IDENTITY, _SOURCES, "tasks.jsonl", "personas.jsonl", GOLDS, MISSING, SPOOL)
)
_TEMPORARY = re.compile(r"\..*\.tmp")


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
        lock = FileLock(file, timeout=0, fallback_to_soft=False)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise DataError(f"{self.out}: another process is building it right now") from None
        except OSError as error:
            raise DataError(f"{self.out}: can't be written: {error.strerror}") from error
        try:
            yield
        finally:
            file.unlink(missing_ok=True)  # safe: filelock takes no lock on a file without a name
            lock.release()

    def is_finished(self) -> bool:
        """Whether OUT is this very build, whole. Raises DataError if OUT is something else."""
        if not self.out.exists() and not self.out.is_symlink():
            return False
        report = None if self.out.is_symlink() else read_json(self.out / REPORT)
        if report is None:
            raise DataError(f"{self.out}: exists already and is no build; choose another out")
        self._check_same(report, self.out)
        self._tidy()
        return True

    def begin(self) -> bool:
        """Opens or makes OUT.partial. Returns whether it was begun before. Raises DataError."""
        if self.partial.is_symlink() or (self.partial.exists() and not self.partial.is_dir()):
            raise DataError(f"{self.partial}: is no folder of a build; move it away")
        self.partial.mkdir(exist_ok=True)
        names = sorted(file.name for file in self.partial.iterdir())
        foreign = [n for n in names if n not in _OURS and not _TEMPORARY.fullmatch(n)]
        if foreign:
            raise DataError(f"{self.partial}: holds {foreign[0]}, which no build writes")
        if (begun := read_json(self.partial / _IDENTITY)) is not None:
            self._check_same(begun, self.partial)
            # Golds are always made anew, from the cache.
            (self.partial / GOLDS).unlink(missing_ok=True)
            return True
        write_json(self.partial / _IDENTITY, {"identity": self._identity})
        return False

    def keep_sources(self, sources: Dataset, report: Mapping[str, Any]) -> None:
        """Keeps tasks and personas. sources.json is written last: it says that they are whole."""
        for kind in ("tasks", "personas"):
            write = partial(write_jsonl, rows=dataset_rows(sources, kind))
            write_atomically(self.partial / f"{kind}.jsonl", write)
        write_json(self.partial / _SOURCES, report)

    def sources(self) -> tuple[Dataset, dict[str, Any]] | None:
        """Tasks, personas and their report, if a former run has completed them."""
        report = read_json(self.partial / _SOURCES)
        return None if report is None else (read_dataset(self.partial, partial=True), report)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Writes build-report.json into OUT.partial."""
        write_json(self.partial / REPORT, {"identity": self._identity, **report})

    def finish(self) -> None:
        """Renames the whole folder to OUT, durably. What is ours alone is removed after that: a
        run that is killed here leaves a whole folder, never one that has forgotten what it is.
        """
        publish_folder(self.partial, self.out)
        self._tidy()

    def _tidy(self) -> None:
        for file in list(self.out.iterdir()):
            if file.name in (_IDENTITY, _SOURCES) or _TEMPORARY.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def _check_same(self, content: Mapping[str, Any], where: Path) -> None:
        found = content.get("identity")
        found = found if isinstance(found, dict) else {}
        differs = [name for name, part in self._identity.items() if found.get(name) != part]
        if differs:
            raise DataError(
                f"{where}: was built from another config or other inputs (they differ in: "
                f"{', '.join(differs)}); choose another out, or delete that folder: what is paid "
                "stays in the cache"
            )
