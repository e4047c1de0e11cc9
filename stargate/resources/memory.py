"""How much memory a run takes: the highest memory of a whole process tree, sampled in a thread.

Importing this needs the standard library only; sampling needs psutil.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import psutil

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryPeak:
    """The highest memory of a process tree, in GiB.

    `measure` is "pss" where every process told its proportional share (shared pages are counted
    once), else "rss" (shared pages counted once per process: too high). `processes` names the
    largest ones at the peak.
    """

    gb: float
    measure: str
    num_samples: int
    processes: tuple[tuple[str, float], ...] = ()


@dataclass
class PeakMemory:
    """Samples the memory of a process tree in a thread.

        with PeakMemory() as memory:
            ...
        memory.peak().gb

    The tree: `root_pid` (this process by default) and all its descendants, which covers what
    `ray.init` and vLLM start. A process once seen stays a member if its parent dies.
    """

    root_pid: int = field(default_factory=os.getpid)
    interval_s: float = 3.0
    # A sample of a large tree takes long: at 3 s it was 7 % of a core that the engines needed.
    max_share: float = 0.01  # of one core

    def __post_init__(self) -> None:
        self._members: dict[int, float] = {}  # pid -> start time, because the kernel reuses pids
        self._peak = MemoryPeak(0.0, "pss", 0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def peak(self) -> MemoryPeak:
        """The highest sample so far."""
        return self._peak

    def sample(self) -> MemoryPeak:
        """Memory of the tree right now; also counts towards the peak."""
        sizes: list[tuple[str, float]] = []
        measure = "pss"
        for process in self._tree():
            size = _memory_of(process)
            if size is None:
                continue
            used, kind = size
            measure = kind if kind == "rss" else measure
            sizes.append((_short_name(process), used / GIB))
        total = sum(size for _, size in sizes)
        largest = tuple(sorted(sizes, key=lambda item: -item[1])[:8])
        now = MemoryPeak(total, measure, self._peak.num_samples + 1, largest)
        highest = now if total > self._peak.gb else self._peak
        # One process that only tells RSS makes the whole figure an upper bound, whenever it lived.
        worst = "rss" if "rss" in (now.measure, self._peak.measure) else "pss"
        self._peak = MemoryPeak(highest.gb, worst, now.num_samples, highest.processes)
        return now

    def _watch(self) -> None:
        while not self._stop.is_set():
            started = time.thread_time()
            self.sample()
            taken = time.thread_time() - started
            self._stop.wait(max(self.interval_s, taken / self.max_share))

    def _tree(self) -> "Iterator[psutil.Process]":
        import psutil

        processes = {p.pid: p for p in psutil.process_iter(["ppid", "create_time", "cmdline"])}
        alive = {
            pid: started
            for pid, started in self._members.items()
            if pid in processes and processes[pid].info["create_time"] == started
        }
        children: dict[int, list[int]] = {}
        for pid, process in processes.items():
            children.setdefault(process.info["ppid"], []).append(pid)
        # A member that took part before is itself a root: its parent may be gone by now.
        waiting = [self.root_pid, *alive]
        members: dict[int, float] = {}
        while waiting:
            pid = waiting.pop()
            if pid in processes and pid not in members:
                members[pid] = processes[pid].info["create_time"]
                waiting.extend(children.get(pid, ()))
        self._members = members
        return (processes[pid] for pid in members)


def _memory_of(process: "psutil.Process") -> tuple[int, str] | None:
    """(bytes, "pss" or "rss") of one process; None if it ended."""
    import psutil

    try:
        return int(process.memory_full_info().pss), "pss"
    except psutil.AccessDenied:
        pass  # another user's process: its resident size is public
    except psutil.NoSuchProcess:
        return None
    try:
        return int(process.memory_info().rss), "rss"
    except psutil.Error:
        return None


def _short_name(process: "psutil.Process") -> str:
    """The title that Ray and vLLM give their workers ("ray::Engine"), else the program."""
    words: list[str] = process.info["cmdline"] or ["?"]
    title = words[0].strip()
    if "::" in title:
        return title.split()[0]
    script = next((Path(w).name for w in words[1:] if not w.startswith("-")), "")
    return f"{Path(title).name} {script}".strip()[:40]
