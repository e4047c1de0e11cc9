"""One run from start to end: check, start actors, evaluate, iterate, evaluate, judge, stop.

RunConfig -> prepared (checked) -> run directory -> actors
          -> evaluate m_0 -> [iteration t -> evaluate m_{t+1}] x T -> judge
          -> eval.json, summary.json
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stargate.config import RunConfig, dump_config
from stargate.errors import ConfigError
from stargate.iteration import IterationResult, Roles, Workbench, run_iteration
from stargate.launch.crew import Prepared, Workshop, prepare, workshop
from stargate.launch.evaluating import Evaluator
from stargate.machine import environment
from stargate.memory import PeakMemory
from stargate.progress import Progress, make_progress
from stargate.store import RunStore
from stargate.summary import print_summary, summarise_run
from stargate.tally import Tally
from stargate.tracking import Trackers, open_trackers
from stargate.tracking_scalars import RunScalars


def run_session(config: RunConfig) -> int:
    """Runs one config. Returns 0, or 130 after Ctrl-C or SIGTERM; raises StargateError."""
    progress = make_progress()
    prepared = prepare(config, progress.say)
    store = create_run_dir(config)
    progress.say(f"run directory: {store.root}")
    resolved = config.model_dump(mode="json")
    try:
        with open_trackers(
            config.tracking, store.root, store.root.name, resolved, progress.say
        ) as trackers:
            asyncio.run(Session(prepared, store, progress, trackers).run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress.say(f"interrupted: what was finished is in {store.root}")
        return 130
    return 0


def create_run_dir(config: RunConfig) -> RunStore:
    """A new folder runs_dir/NAME-TIME with the resolved config and the environment in it."""
    return fill_run_dir(config.runs_dir / timed_name(config), config)


def timed_name(config: RunConfig) -> str:
    """NAME-TIME, for a folder."""
    return f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def fill_run_dir(root: Path, config: RunConfig) -> RunStore:
    """Makes `root` with the resolved config and the environment in it. Raises ConfigError."""
    try:
        root.mkdir(parents=True)
        (root / "logs").mkdir()
        (root / "models").mkdir()
    except OSError as error:
        raise ConfigError(f"runs_dir: can't create {root}: {error.strerror}") from error
    store = RunStore(root)
    store.write_text("config.yaml", dump_config(config))
    store.write_json("environment.json", environment())
    return store


class Session:
    """A run in progress."""

    def __init__(
        self, prepared: Prepared, store: RunStore, progress: Progress, trackers: Trackers
    ) -> None:
        self._prepared = prepared
        self._config = prepared.config
        self._store = store
        self._progress = progress
        self._tally = Tally()
        self._trackers = trackers
        self._scalars = RunScalars(self._tally)
        self._evaluator = Evaluator(prepared, prepared.config, prepared.config)
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._iterations: list[IterationResult] = []

    async def run(self) -> None:
        """Starts the actors and runs everything."""
        log_dir = self._store.root.resolve() / "logs"
        with self._recorded():
            async with workshop(self._prepared, log_dir, self._tally, self._progress) as running:
                await self._play(*running.open(self._config, self._store, self._tally))

    async def play_in(self, running: Workshop) -> None:
        """Runs everything with actors that run already, and go on running.

        They may hold what another run trained, so m_0 is pushed first.
        """
        with self._recorded():
            roles, bench = running.open(self._config, self._store, self._tally)
            await roles.push(str(self._prepared.base_model_dir), 0)
            await self._play(roles, bench)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Logs, and writes what was measured also when the run ends early."""
        started = time.perf_counter()
        with PeakMemory() as memory, _logged(self._store.root / "logs" / "driver.log"):
            status = "finished"
            try:
                yield
            except BaseException as error:
                status = f"stopped: {type(error).__name__}: {' '.join(str(error).split())}".strip(
                    ": "
                )
                raise
            finally:
                summary = summarise_run(
                    tally=self._tally,
                    evaluations=self._evaluations,
                    iterations=self._iterations,
                    status=status,
                    seconds=time.perf_counter() - started,
                    peak=memory.peak(),
                    data_dropped=self._prepared.dataset.drop_counts,
                )
                summary["tracking_lost"] = self._trackers.lost
                self._store.write_json("summary.json", summary)
        print_summary(summary, self._store, self._config.evaluation.show_dialogues, self._progress)

    async def _play(self, roles: Roles, bench: Workbench) -> None:
        await self._evaluate(0, roles, bench)
        for iteration in range(self._config.schedule.num_iterations):
            pairs = self._prepared.train_pairs(iteration)
            result = await run_iteration(iteration, pairs, roles, bench)
            self._iterations.append(result)
            self._store.append_metrics(iteration_event(iteration, result, self._tally))
            scalars = self._scalars.iteration(iteration, result.trained, result.pushed)
            self._trackers.log_all(scalars)
            await self._evaluate(iteration + 1, roles, bench)
        if self._config.evaluation.enabled:
            await self._evaluator.judge(range(len(self._iterations) + 1), roles, bench)
            self._evaluator.write(self._store)

    async def _evaluate(self, version: int, roles: Roles, bench: Workbench) -> None:
        if not self._config.evaluation.enabled:
            return
        measures = (await self._evaluator.checkpoint(version, roles, bench)).measures
        self._evaluations[f"m{version}"] = measures
        self._store.append_metrics({"event": "evaluation", "version": version, **measures})
        self._trackers.log_all(self._scalars.evaluation(version, measures))
        self._evaluator.write(self._store)


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """What this process logs goes to a file too."""
    log = logging.FileHandler(file, encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(log)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(log)
        log.close()


def iteration_event(iteration: int, result: IterationResult, tally: Tally) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    trained, pushed = result.trained, result.pushed
    return {
        "event": "iteration",
        "iteration": iteration,
        "train_losses": trained.losses,
        "grad_norms": trained.grad_norms,
        "learning_rates": trained.learning_rates,
        "validation_loss": trained.validation_loss,
        "num_examples": trained.num_examples,
        "train_seconds": trained.seconds,
        "push_seconds": pushed.seconds,
        "push_phases": pushed.phases,
        "dropped": dict(tally.dropped),
    }
