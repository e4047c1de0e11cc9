"""What one process's work on a run leaves: its log, metrics, totals and summary.

    iteration, evaluation -> metrics.jsonl, trackers, sittings.json (what is counted so far)
    the end, early or not -> summary.json

A run may be worked on by several processes one after the other (`stargate resume`): the totals are
those of all of them.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stargate.monitoring.memory import PeakMemory
from stargate.monitoring.progress import safe_text
from stargate.monitoring.scalars import RunScalars
from stargate.monitoring.summary import summarise_run
from stargate.monitoring.tracking import Trackers
from stargate.records.history import RunHistory, RunTotals, count_rollouts, iteration_event
from stargate.records.repair import set_aside_files
from stargate.records.store import RunStore
from stargate.types import IterationResult

COST_FILE = "roleplayer_cost.json"


class RunJournal:
    """Keeps the books of a run while it goes on; `summary` is what it has come to.

    `past` and `before` are what earlier processes did and took, `data_dropped` counts what the data
    set lacks, `roleplayer_cost` reads what a Roleplayer behind an API has cost.
    """

    def __init__(
        self,
        store: RunStore,
        trackers: Trackers,
        past: RunHistory,
        before: RunTotals,
        data_dropped: Mapping[str, int],
        roleplayer_cost: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> None:
        self.counters = before.new_counters()
        self._store = store
        self._trackers = trackers
        self._data_dropped = data_dropped
        self._roleplayer_cost = roleplayer_cost
        self._before = replace(before, count=before.count + 1)
        self._settled = self._before  # all processes, up to the last iteration or evaluation
        self._scalars = RunScalars(self.counters, past.num_steps)
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._iterations: list[IterationResult] = []
        self._memory = PeakMemory()
        self._started = time.perf_counter()
        self.summary: dict[str, Any] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Logs, and writes what was measured also when the run ends early."""
        self._started = time.perf_counter()
        self._before.write(self._store)
        with self._memory, _logged(self._store.root / "logs" / "driver.log"):
            status = "finished"
            try:
                yield
            except BaseException as error:
                problem = f"{type(error).__name__}: {' '.join(str(error).split())}".strip(": ")
                status = f"stopped: {problem}"
                raise
            finally:
                self.summary = self._summarise(status)
                self._store.write_json("summary.json", self.summary)

    def iteration(self, number: int, result: IterationResult, *, known: bool) -> None:
        """Iteration t = `number` has been done; `known`: it is in metrics.jsonl already."""
        self._iterations.append(result)
        if known:
            return
        self._store.append_metrics(iteration_event(number, result, self.counters))
        self._trackers.log_all(self._scalars.iteration(number, result.trained, result.pushed))
        self._settle()

    def evaluation(self, version: int, measures: dict[str, Any], *, known: bool) -> None:
        """m_`version` has been evaluated; `known`: it is in metrics.jsonl already."""
        self._evaluations[f"m{version}"] = measures
        if not known:
            self._store.append_metrics({"event": "evaluation", "version": version, **measures})
            self._trackers.log_all(self._scalars.evaluation(version, measures))
        self._settle()

    def _settle(self) -> None:
        """What was taken so far survives a kill."""
        self._settled = self._so_far()
        self._settled.write(self._store)
        self._write_cost()

    def _write_cost(self) -> Mapping[str, Any] | None:
        """What an API has cost, as a record: its meter is a file of this machine alone."""
        if (cost := self._roleplayer_cost()) is not None:
            self._store.write_json(COST_FILE, dict(cost))
        return cost

    def _so_far(self) -> RunTotals:
        seconds = time.perf_counter() - self._started
        return self._before.plus(self.counters, seconds, self._memory.peak(), self._trackers.lost)

    def _summarise(self, status: str) -> dict[str, Any]:
        total = self._so_far()
        summary = summarise_run(
            total, self._evaluations, self._iterations, status, self._data_dropped
        )
        if (cost := self._write_cost()) is not None:
            summary["roleplayer_cost"] = dict(cost)
        summary["damaged_files"] = set_aside_files(self._store.root)
        if total.count > 1 and "rollout" in summary:
            # The rate stays that of the processes that could say how long they took.
            num_dialogues, num_tokens = count_rollouts(self._store, total)
            summary["rollout"]["num_dialogues"] = num_dialogues
            summary["rollout"]["generated_tokens"] = num_tokens
        if status != "finished":
            # What is under way is dropped again by the next process, if it must be: count it once.
            total = replace(
                total,
                dropped=self._settled.dropped,
                dropped_examples=self._settled.dropped_examples,
            )
        total.write(self._store)
        return summary


class _LogFile(logging.FileHandler):
    """A log that may lose lines when the disk is full: the records say so, with less noise."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Keeps quiet, where the standard library prints a traceback per line."""

    def close(self) -> None:
        with suppress(OSError):  # lines that could not be written are tried again here
            super().close()


class _SafeFormatter(logging.Formatter):
    """A log is read on a terminal too, and errors may quote what a model wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return safe_text(super().format(record))


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """What this process logs goes to a file too."""
    log = _LogFile(file, encoding="utf-8")
    log.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(log)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
