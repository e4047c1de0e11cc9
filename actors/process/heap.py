"""What the C library's heap does with memory that tensors on the CPU free.

It gives large blocks back to the system at once, and every new one costs a page fault per 4 KiB:
100,000 in a pass over 800 tokens. Kept blocks made such passes 1.28 times as fast (SmolLM2-135M,
one core). They can be kept only in the heap that all threads share: those that threads have of
their own end at 64 MB, and what is larger is mapped anew each time. A thread may inherit such a
heap from one that has ended, so a process must have ONE_HEAP from its start.

It is glibc that is told; other C libraries stay as they are.
"""

import ctypes
import os

# For a process that is about to start: one heap, and what keep_freed_memory() does as well.
ONE_HEAP = "glibc.malloc.arena_max=1"
KEEP_FREED_MEMORY = f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483648:{ONE_HEAP}"
_TUNABLES = "GLIBC_TUNABLES"
# glibc's malloc.h: M_MMAP_MAX 0 (no block is mapped by itself), M_TRIM_THRESHOLD as large as it can
# be (free memory at the heap's end stays), M_ARENA_MAX 1 (threads use the same heap).
_KEEP_FREED = ((-4, 0), (-1, 2**31 - 1), (-8, 1))


def heap_environment(tunables: str, device: str) -> dict[str, str]:
    """Variables with which a process must start for these tunables to hold; none but on a CPU.

    The user's own tunables stay as they are.
    """
    return {} if device != "cpu" or _TUNABLES in os.environ else {_TUNABLES: tunables}


def follow_tunables() -> None:
    """What this process's variables say, in one that was forked: glibc reads them at a start."""
    if os.environ.get(_TUNABLES) == KEEP_FREED_MEMORY:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets this process keep the memory that tensors on the CPU free, for the next ones.

    The process stays as large as it was at its peak until release_freed_memory().
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _KEEP_FREED:
            mallopt(option, value)


def release_freed_memory() -> None:
    """Gives back what keep_freed_memory() kept; with another C library than glibc, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
