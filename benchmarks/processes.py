"""The processes of a run: what each of them is, its CPU seconds, and the log that it writes to.

RUN/logs/questioner-0.log <- actor "questioner", vLLM's core behind it, and its workers if any
RUN/logs/scorer-1.log     <- actor "scorer"          RUN/logs/trainer-0.log <- "trainer"

The core is vLLM's scheduler, and the model where an engine has one device; else its workers have
the model. The driver is the command itself: the loop, prompts, tokenising, matching facts.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

# Every kind of process that a run has beside its driver and Ray's own. vLLM has workers only where
# an engine takes several devices; else its core computes.
KINDS = (
    *(role + part for role in ("questioner", "roleplayer") for part in ("", "-core", "-worker")),
    *("scorer", "trainer"),
)
DRIVER = "driver"
WORKERS = tuple(kind for kind in KINDS if kind.endswith("-worker"))
# How the names begin that processes give themselves; the kernel keeps 15 characters, and Ray adds
# the method that an actor is at.
_TITLES = {
    "ray::Engine": "",
    "ray::MeasuredEn": "",  # of the rollout benchmark
    "ray::Scorer": "",
    "ray::TrainerRan": "",
    "VLLM::EngineCor": "-core",
    "VLLM::Worker": "-worker",
}


def cpu_seconds(run_dir: Path) -> Mapping[str, float]:
    """CPU seconds up to now of this process, of each part of the engines that log to `run_dir`,
    and of everything else that Ray started.

    Only processes that still run are counted: take two of these and subtract.
    """
    kinds = {one.pid: one.kind for one in processes_of(run_dir)}
    driver = psutil.Process()
    found = defaultdict(float, {DRIVER: seconds_of(driver)})
    for process in driver.children(recursive=True):
        role, _, part = kinds.get(process.pid, "").partition("-")
        found[f"{role}_{part or 'front_end'}" if role else "others"] += seconds_of(process)
    return found


def used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was used between two looks, largest first."""
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def seconds_of(process: psutil.Process, *names: str) -> float:
    """A process's CPU seconds; 0 if it has ended, or has another name than those."""
    try:
        if names and process.name() not in names:
            return 0.0
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Found:
    """A process of a run. `post` is what its log is called: "questioner-0"."""

    pid: int
    kind: str
    post: str


def processes_of(run_dir: Path) -> list[Found]:
    """All actors of a run, and vLLM's processes behind them."""
    found = []
    for process, log in _writers(run_dir):
        try:
            name = (process / "comm").read_text(encoding="utf-8")
        except OSError:
            continue  # it has just ended
        part = next((part for title, part in _TITLES.items() if name.startswith(title)), None)
        if part is not None:
            role = log.stem.rpartition("-")[0]
            found.append(Found(int(process.name), role + part, log.stem))
    return sorted(found, key=lambda one: (one.post, one.kind))


def left_over(run_dir: Path) -> list[int]:
    """Ids of all processes that still write to a run's logs, whatever they are."""
    return [int(process.name) for process, _ in _writers(run_dir)]


def _writers(run_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Every process whose standard output goes to one of a run's logs, and that log."""
    logs = run_dir.resolve() / "logs"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            log = Path(os.readlink(process / "fd" / "1"))
        except OSError:
            continue  # it ended while we looked, or is another user's
        if log.parent == logs:
            yield process, log
