"""Who uses the cores while dialogues are played: CPU seconds of every process, by what it is.

driver                         the command itself: the loop, prompts, tokenising, matching facts
questioner / roleplayer
    front_end                  the Ray actor with vLLM's AsyncLLM
    core                       vLLM's scheduler, and the model where an engine has one device
    worker                     else the model
ray                            everything else that Ray started
"""

import os
from collections.abc import Mapping, Sequence

import psutil

# A process's own title -> its part of an engine; anything else below an engine's actor counts as
# its front end.
_ENGINE_PARTS = {"VLLM::EngineCore": "core", "VLLM::Worker": "worker"}


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
