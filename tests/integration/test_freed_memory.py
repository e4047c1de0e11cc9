"""The memory that passes free is kept for the next pass, and given back at rest."""

import os
import subprocess
import sys

import pytest

from stargate.actors.process.heap import ONE_HEAP, heap_environment
from stargate.actors.scoring import scorer as scorer_module
from stargate.actors.scoring.scorer import Scorer, ScorerSpec
from stargate.config.run import ScorerConfig

pytestmark = pytest.mark.integration

_SCRIPT = """
import psutil, torch
from stargate.actors.process.heap import keep_freed_memory, release_freed_memory

torch.set_num_threads(1)
rss = lambda: psutil.Process().memory_info().rss / 2**20
keep_freed_memory()
before = rss()
blocks = [torch.ones(2**20) for _ in range(200)]  # 800 MiB
last = torch.ones(2**18)  # lies above them: the heap can't simply end lower
del blocks
kept = rss() - before
release_freed_memory()
print(kept, rss() - before)
"""


def test_freed_memory_is_kept_until_it_is_released() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True
    )
    kept, left = map(float, done.stdout.split())
    assert kept > 700  # MiB
    assert left < 100


# The second thread gets the heap of the first, unless there is one heap for all.
_THREADS = """
import psutil, threading, torch
from stargate.actors.process.heap import keep_freed_memory

torch.set_num_threads(1)
rss = lambda: psutil.Process().memory_info().rss / 2**20

def run(target):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()

run(lambda: torch.ones(1000))
keep_freed_memory()
before = rss()
run(lambda: torch.ones(50 * 2**20))  # 200 MiB, more than a thread's own heap holds
print(rss() - before)
"""


def test_what_a_thread_frees_is_kept_if_the_process_has_one_heap() -> None:
    environment = {**os.environ, **heap_environment(ONE_HEAP, "cpu")}
    done = subprocess.run(
        [sys.executable, "-c", _THREADS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) > 190  # MiB


class _Model:
    """Counts its rests; there is nothing to score."""

    def __init__(self) -> None:
        self.rests = 0

    def rest(self) -> None:
        self.rests += 1


def test_a_scorer_without_requests_rests_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "_REST_AFTER", 0.01)
    scorer = Scorer(ScorerSpec("no model is loaded", ScorerConfig()))
    model = _Model()
    original = scorer._calls.get
    waits: list[float | None] = []

    def get(timeout: float | None = None) -> object:
        waits.append(timeout)
        if timeout is None:
            scorer._calls.put(None)  # the end, after the rest
        return original(timeout=timeout)

    monkeypatch.setattr(scorer, "_calls", _Queue(scorer._calls, get))
    assert scorer._take_pending(model) == ([], True)  # type: ignore[arg-type]
    assert (model.rests, waits) == (1, [0.01, None])


class _Queue:
    def __init__(self, calls: object, get: object) -> None:
        self.get = get
        self.put = calls.put  # type: ignore[attr-defined]
        self.empty = calls.empty  # type: ignore[attr-defined]
