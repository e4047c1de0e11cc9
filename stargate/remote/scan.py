"""What a run directory holds, in an order that may be copied file by file.

    models/m1 -> eval-m1 -> t1 -> models/m2 -> ...      within t1: dialogues -> scores -> ...

A run goes on writing while its files are listed. So each file is looked at BEFORE those that it was
made from, and copied AFTER them: whatever is copied, all that it was made from is copied already,
wherever the copying is cut off. A copy with a score but without its dialogue would get a second
dialogue of that name when the run goes on from it, and a score that is another's.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stargate.records.files import read_exactly
from stargate.records.schemas import SCHEMAS
from stargate.records.store import METRICS
from stargate.remote.manifest import Content, is_model_file, is_record

_VERSION = re.compile(r"(t|eval-m)(\d{1,6})")
_MODEL = re.compile(r"m(\d{1,6})")
# Top-level files that are made from all others, last ones last.
_LATE = ("sittings.json", METRICS, "eval_dropped.json", "eval.json", "summary.json")

# Files that are announced, and held open, together; and bytes.
_BATCH_FILES = 64
_BATCH_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file as it was seen. `stamp` changes when another file takes its name."""

    name: str
    path: Path
    size: int
    stamp: tuple[int, int]  # inode, time of change in ns

    @property
    def grows(self) -> bool:
        """Whether it is appended to; other files are written once and replaced as a whole."""
        return self.path.name == METRICS


def scan(root: Path, *, models: bool) -> list[LocalFile]:
    """The files to be copied, in the order to do it."""
    late_first = [file for name in _LATE[::-1] for file in _look(root, [root / name])]
    evaluations = root / "evaluations"
    named = [file for folder in _folders(evaluations) for file in _scan_scopes(root, folder, False)]
    scopes = _scan_scopes(root, root, models)
    rest = [path for path in _entries(root) if path.name not in _LATE]
    early = list(_look(root, rest))
    # Looked at in this order, so copied in the opposite one.
    return [*late_first, *named, *scopes, *early][::-1]


def _scan_scopes(root: Path, folder: Path, models: bool) -> list[LocalFile]:
    """Files of the scopes in `folder`, latest first, and of a named evaluation its own."""
    found: list[LocalFile] = []
    if folder != root:
        late = [folder / name for name in _LATE[::-1]]
        others = [path for path in _entries(folder) if path.name not in _LATE]
        found += _look(root, [*late, *others])
    scopes: dict[int, list[Path]] = {}
    for path in _folders(folder):
        if match := _VERSION.fullmatch(path.name):
            scopes.setdefault(int(match[2]), []).append(path)
    trained = _models(folder / "models") if models else {}
    for version in sorted({*scopes, *trained}, reverse=True):
        # t1 before eval-m1: neither is made from the other, and both from m1.
        for scope in sorted(scopes.get(version, []), reverse=True):
            found += _scan_scope(root, scope)
        if version in trained:
            found += _look(root, sorted(trained[version].rglob("*")))
    return found


def _scan_scope(root: Path, scope: Path) -> Iterator[LocalFile]:
    merged = {f"{name}.parquet" for name in SCHEMAS}
    yield from _look(root, [path for path in _entries(scope) if path.name not in merged])
    for name in list(SCHEMAS)[::-1]:
        # Parts before the merged file that takes their place: what a part has that was written
        # after it must not be copied before it.
        yield from _look(root, [*_entries(scope / name)[::-1], scope / f"{name}.parquet"])


def _models(folder: Path) -> dict[int, Path]:
    matches = ((_MODEL.fullmatch(path.name), path) for path in _folders(folder))
    return {int(match[1]): path for match, path in matches if match}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and not path.is_symlink()]


def _look(root: Path, paths: list[Path]) -> Iterator[LocalFile]:
    for path in paths:
        name = path.relative_to(root).as_posix()
        if not (is_record(name) or is_model_file(name)):
            continue
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            continue
        yield LocalFile(name, path, status.st_size, (status.st_ino, status.st_mtime_ns))


@contextmanager
def opened_files(batch: Sequence[LocalFile]) -> Iterator[list[tuple[LocalFile, BinaryIO]]]:
    """The files up to the first that is not what the scan saw."""
    opened: list[tuple[LocalFile, BinaryIO]] = []
    try:
        for file in batch:
            try:
                source: BinaryIO = file.path.open("rb")
            except FileNotFoundError:
                break
            opened.append((file, source))
            now = os.fstat(source.fileno())
            same_file = now.st_ino == file.stamp[0]
            grown = file.grows and same_file and now.st_size >= file.size
            if not grown and (now.st_size, (now.st_ino, now.st_mtime_ns)) != (
                file.size,
                file.stamp,
            ):
                source.close()
                opened.pop()
                break
        yield opened
    finally:
        for _, source in opened:
            source.close()


def content_of(file: LocalFile, source: BinaryIO) -> Content:
    """Checksum of the bytes that the scan saw: metrics.jsonl may have grown since."""
    sha256 = hashlib.sha256()
    for chunk in read_exactly(source, file.size):
        sha256.update(chunk)
    return Content(sha256.hexdigest(), file.size)


def batches_of(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) == _BATCH_FILES or size + file.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch
