"""How much memory a run takes: the highest memory of a whole process tree, sampled in a thread.

Importing this needs the standard library only; sampling needs psutil.
"""

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from stargate.types import MemoryPeak

if TYPE_CHECKING:
    import psutil


@dataclass
class PeakMemory:
    """Samples the memory of a process tree in a thread.

        with PeakMemory() as memory:
            ...
        memory.peak().gb

    The tree: this process and all its descendants, which covers what `ray.init` and vLLM start. A
    process once seen stays a member if its parent dies.
    """

    interval_s: float = 3.0
    # A sample of a large tree takes long: at 3 s it was 7 % of a core that the engines needed.
    max_share: float = 0.01  # of one core

    def __post_init__(self) -> None:
        self._members: set[psutil.Process] = set()
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
        sizes = [size for process in self._tree() if (size := _memory_of(process)) is not None]
        gb = sum(used for used, _ in sizes) / 2**30
        measure = max((kind for _, kind in sizes), default="pss")  # "rss" if any told no more
        now = MemoryPeak(gb, measure, self._peak.num_samples + 1)
        # One process that only tells RSS makes the whole figure an upper bound, whenever it lived.
        worst = max(now.measure, self._peak.measure)
        self._peak = MemoryPeak(max(gb, self._peak.gb), worst, now.num_samples)
        return now

    def _watch(self) -> None:
        while not self._stop.is_set():
            started = time.thread_time()
            self.sample()
            taken = time.thread_time() - started
            self._stop.wait(max(self.interval_s, taken / self.max_share))

    def _tree(self) -> "set[psutil.Process]":
        import psutil

        children: dict[int, list[psutil.Process]] = {}
        waiting = []
        for process in psutil.process_iter(["ppid"]):
            children.setdefault(process.info["ppid"], []).append(process)
            # One that took part before is itself a root: its parent may be gone by now. If it is:
            # the kernel gives an id to another process later on.
            known = process in self._members and process.is_running()
            if known or process.pid == os.getpid():
                waiting.append(process)
        self._members = set()
        while waiting:
            process = waiting.pop()
            if process not in self._members:
                self._members.add(process)
                waiting += children.get(process.pid, ())
        return self._members


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
