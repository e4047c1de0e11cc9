"""How vLLM's processes wait for each other on a machine with few cores (vllm).

Where an engine has several devices, vLLM's scheduler process and its workers pass messages through
shared memory, and each spins on it for up to a second while the other works: fastest where a core
is free for that. On the few cores of a machine without a GPU the spinning is taken from engines
that have work, and it hides from the kernel which core has room for the processes that move
(measured: lab notes). So there they sleep until they are told; a message then arrives up to 0.1 ms
later, at steps of 20 to 100 ms.

Called by vLLM in each of its processes, through weights.register.
"""

import time
from collections.abc import Callable
from typing import Any

# Longest sleep (ms) while messages are frequent: a notice can get lost, and is not sent twice.
_MAX_SLEEP_MS = 5
# Messages are frequent until none came for so long (seconds); then vLLM's own sleep is good enough.
_FREQUENT_SECONDS = 1.0


def sleep_instead_of_spinning() -> None:
    """Makes readers of vLLM's message queues in this process sleep. Does nothing on GPUs."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and not getattr(SpinCondition, "sleeps", False):
        SpinCondition.wait = sleeping(SpinCondition.wait)
        SpinCondition.sleeps = True


def sleeping(vllms_wait: Callable[[Any, int | None], None]) -> Callable[..., None]:
    """vLLM's `SpinCondition.wait`, told that the time for spinning is over."""

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        self.busy_loop_s = 0.0
        if time.monotonic() < self.last_read + _FREQUENT_SECONDS:
            timeout_ms = _MAX_SLEEP_MS if timeout_ms is None else min(timeout_ms, _MAX_SLEEP_MS)
        vllms_wait(self, timeout_ms)

    return wait
