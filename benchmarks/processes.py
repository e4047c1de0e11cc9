"""The processes of a run: what each of them is, its CPU seconds, and the log that it writes to.

driver                         the command itself: the loop, prompts, tokenising, matching facts
questioner / roleplayer
    front_end                  the Ray actor with vLLM's AsyncLLM
    core                       vLLM's scheduler, and the model where an engine has one device
    worker                     else the model
others                         everything else that Ray started

RUN/logs/questioner-0.log <- actor "questioner", vLLM's core behind it, and its workers if any
RUN/logs/scorer-1.log     <- actor "scorer"          RUN/logs/trainer-0.log <- "trainer"
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# A process's own title -> its part of an engine; anything else below an engine's actor counts as
# its front end.
_ENGINE_PARTS = {"VLLM::EngineCore": "core", "VLLM::Worker": "worker"}
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
    "ray::Scorer": "",
    "ray::TrainerRan": "",
    "VLLM::EngineCor": "-core",
    "VLLM::Worker": "-worker",
}


def cpu_seconds(engines: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """CPU seconds up to now by what the process is. `engines`: role -> process ids of its actors.

    Only processes that still run are counted: take two of these and subtract.
    """
    driver = psutil.Process(os.getpid())
    of_engine = {pid: role for role, pids in engines.items() for pid in pids}
    found: dict[str, float] = {"driver": seconds_of(driver)}
    for process in driver.children(recursive=True):
        name = _name_of(process, of_engine)
        found[name] = found.get(name, 0.0) + seconds_of(process)
    return found


def used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was used between two looks, largest first."""
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def _name_of(process: psutil.Process, of_engine: Mapping[int, str]) -> str:
    try:
        title = next(iter(process.cmdline()), "")
        line = [process.pid, *(parent.pid for parent in process.parents())]
    except psutil.Error:  # it has just ended
        return "others"
    role = next((of_engine[pid] for pid in line if pid in of_engine), None)
    return "others" if role is None else f"{role}_{engine_part(title)}"


def engine_part(title: str) -> str:
    """Which part of an engine a process is, by its title."""
    return next((part for name, part in _ENGINE_PARTS.items() if name in title), "front_end")


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
