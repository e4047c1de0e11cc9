"""The processes of a run, found by the log file that each writes to.

RUN/logs/questioner-0.log <- actor "questioner", vLLM's core behind it, and its workers if any
RUN/logs/scorer-1.log     <- actor "scorer"          RUN/logs/trainer-0.log <- "trainer"
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Every kind of process that a run has beside its driver and Ray's own. vLLM has workers only where
# an engine takes several devices; else its core computes.
KINDS = (
    "questioner",
    "questioner-core",
    "questioner-worker",
    "roleplayer",
    "roleplayer-core",
    "roleplayer-worker",
    "scorer",
    "trainer",
)
DRIVER = "driver"
WORKERS = tuple(kind for kind in KINDS if kind.endswith("-worker"))
# How the names begin that processes give themselves; the kernel keeps 15 characters, and Ray adds
# the method that an actor is at.
_TITLES = {
    "ray::Engine": "",
    "ray::Scorer": "",
    "ray::TrainerRan": "",
    "VLLM::EngineCor": "-core",
    "VLLM::Worker": "-worker",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A process of a run. `post` is what its log is called: "questioner-0"."""

    pid: int
    kind: str
    post: str


def processes_of(run_dir: Path) -> list[Found]:
    """All actors of a run, and vLLM's processes behind them."""
    logs = run_dir.resolve() / "logs"
    found = []
    for process, log in _outputs():
        if log.parent != logs:
            continue
        name = _read(process / "comm")
        part = next((part for title, part in _TITLES.items() if name.startswith(title)), None)
        if part is not None:
            role = log.stem.rpartition("-")[0]
            found.append(Found(int(process.name), role + part, log.stem))
    return sorted(found, key=lambda one: (one.post, one.kind))


def left_over(run_dir: Path) -> list[int]:
    """Ids of all processes that still write to a run's logs, whatever they are."""
    logs = run_dir.resolve() / "logs"
    return [int(process.name) for process, log in _outputs() if log.parent == logs]


def _outputs() -> Iterator[tuple[Path, Path]]:
    """Every process of ours, and the file that its standard output goes to."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield process, Path(os.readlink(process / "fd" / "1"))
        except OSError:
            continue  # it ended while we looked, or is another user's


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
