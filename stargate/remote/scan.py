"""Which files of a run directory are records, in an order that may be copied file by file.

    models/m1 -> eval-m1 -> t1 -> models/m2 -> ...      within t1: dialogues -> scores -> ...

A run goes on writing while its files are listed. So each file is looked at BEFORE those that it was
made from, and copied AFTER them: whatever is copied, all that it was made from is copied already,
wherever the copying is cut off. A copy with a score but without its dialogue would get a second
dialogue of that name when the run goes on from it, and a score that is another's.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stargate.records.files import entries
from stargate.records.schemas import SCHEMAS
from stargate.records.store import METRICS

# In the run directory, of this machine alone: where its records land, and that it was fetched.
LANDING_FILE = "landing.json"
FETCHED_FILE = "fetched.json"
# Top-level files that are made from all others, last ones last.
_LATE = ("sittings.json", METRICS, "eval_dropped.json", "eval.json", "summary.json")
# Files that are announced, and held open, together; and bytes.
_BATCH_FILES = 64
_BATCH_BYTES = 1 << 28

_SCOPE = re.compile(r"(t|eval-m)(\d{1,6})")
_VERSION = re.compile(r"m(\d{1,6})")
_TABLE = f"({'|'.join(SCHEMAS)})"
_ASIDE = r"(\.damaged-\d{1,6})?"
_IN_SCOPE = (
    rf"(t|eval-m)\d{{1,6}}/({_TABLE}(/part-\d{{6,9}})?\.parquet|[a-z_]{{1,40}}\.json){_ASIDE}"
)
_TOP = rf"(config\.yaml|metrics\.jsonl|[a-z_]{{1,40}}(-\d{{1,6}})?\.json){_ASIDE}"
_EVALUATION = r"(evaluations/[A-Za-z0-9][A-Za-z0-9._-]{0,99}/)?"
_RECORD = re.compile(rf"{_EVALUATION}({_TOP}|{_IN_SCOPE})")
# No .py and no pickles: nothing that comes from shared storage may be code.
_MODEL_FILE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(safetensors|json|txt|jinja|model|tiktoken)"
_MODEL = re.compile(rf"models/m\d{{1,6}}/(additional_chat_templates/)?{_MODEL_FILE}")


def is_record(name: str) -> bool:
    """Whether a name within a run directory is one of records; all others stay where they are."""
    return _RECORD.fullmatch(name) is not None and name not in (LANDING_FILE, FETCHED_FILE)


def is_model_file(name: str) -> bool:
    """Whether it is one of a trained model."""
    return _MODEL.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file as it was seen. `stamp` changes when another file takes its name."""

    name: str
    path: Path
    size: int
    stamp: tuple[int, int]  # inode, time of change in ns

    def begins(self, now: os.stat_result) -> bool:
        """Whether an open file still begins with what was seen."""
        if self.path.name == METRICS:  # appended to; others are written once and replaced whole
            return now.st_ino == self.stamp[0] and now.st_size >= self.size
        return (now.st_size, (now.st_ino, now.st_mtime_ns)) == (self.size, self.stamp)


def scan(root: Path, *, models: bool) -> list[LocalFile]:
    """The files to be copied, in the order to do it."""
    # Looked at in this order, so copied in the opposite one.
    return list(_scan(root, root, models))[::-1]


def _scan(root: Path, folder: Path, models: bool) -> Iterator[LocalFile]:
    """Files of a run directory, or of a named evaluation in it: what was made last comes first."""
    yield from _look(root, (folder / name for name in _LATE[::-1]))
    if folder == root:
        for evaluation in _folders(root / "evaluations"):
            yield from _scan(root, evaluation, False)
    scopes: dict[int, list[Path]] = {}
    for path in _folders(folder):
        if match := _SCOPE.fullmatch(path.name):
            scopes.setdefault(int(match[2]), []).append(path)
    matches = ((_VERSION.fullmatch(path.name), path) for path in _folders(folder / "models"))
    trained = {int(match[1]): path for match, path in matches if match and models}
    for version in sorted({*scopes, *trained}, reverse=True):
        # t1 before eval-m1: neither is made from the other, and both from m1.
        for scope in sorted(scopes.get(version, []), reverse=True):
            yield from _scan_scope(root, scope)
        if version in trained:
            yield from _look(root, sorted(trained[version].rglob("*")))
    yield from _look(root, (path for path in entries(folder) if path.name not in _LATE))


def _scan_scope(root: Path, scope: Path) -> Iterator[LocalFile]:
    merged = {f"{name}.parquet" for name in SCHEMAS}
    yield from _look(root, (path for path in entries(scope) if path.name not in merged))
    for name in list(SCHEMAS)[::-1]:
        # Parts before the merged file that takes their place: what a part has that was written
        # after it must not be copied before it.
        yield from _look(root, [*entries(scope / name)[::-1], scope / f"{name}.parquet"])


def _folders(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.is_dir() and not path.is_symlink()]


def _look(root: Path, paths: Iterable[Path]) -> Iterator[LocalFile]:
    for path in paths:
        name = path.relative_to(root).as_posix()
        if not (is_record(name) or is_model_file(name)):
            continue
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield LocalFile(name, path, status.st_size, (status.st_ino, status.st_mtime_ns))


@contextmanager
def opened_files(batch: Sequence[LocalFile]) -> Iterator[list[tuple[LocalFile, BinaryIO]]]:
    """The files up to the first that is not what the scan saw."""
    with ExitStack() as stack:
        opened: list[tuple[LocalFile, BinaryIO]] = []
        for file in batch:
            try:
                source = stack.enter_context(file.path.open("rb"))
            except FileNotFoundError:
                break
            if not file.begins(os.fstat(source.fileno())):
                break
            opened.append((file, source))
        yield opened


def batches_of(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    for file in files:
        size = sum(one.size for one in batch) + file.size
        if batch and (len(batch) == _BATCH_FILES or size > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch
