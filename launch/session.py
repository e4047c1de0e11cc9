"""`stargate run` from start to end: check, start the actors, run the loop, say what came of it.

RunConfig -> prepared (checked) -> run directory -> actors -> training_loop.py -> summary

A session may go on with a run (`stargate resume`): then `past` says what is done.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

from stargate.config.files import dump_config
from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.evaluation.validation import open_validation
from stargate.launch.provenance import keep_inputs
from stargate.launch.scaling import following
from stargate.launch.setup import REMOTE_CODE, Prepared, prepare
from stargate.launch.shared import interruptible
from stargate.launch.summary import print_summary
from stargate.launch.system import RunningSystem, running_system
from stargate.monitoring.journal import RunJournal
from stargate.monitoring.progress import Progress, make_progress
from stargate.monitoring.tracking import Trackers, open_trackers
from stargate.oracle.roleplayer_call import roleplayer_cost
from stargate.records.files import hold
from stargate.records.history import RunHistory, RunTotals
from stargate.records.store import RunStore
from stargate.remote.landing import check_records, landing
from stargate.resources.machine import environment
from stargate.training_loop import TrainingLoop


def run_session(config: RunConfig) -> None:
    """Runs one config. Raises Interrupted after Ctrl-C or SIGTERM, and StargateError."""
    progress = make_progress()
    check_records(config)
    prepared = prepare(config, progress.say)
    store = fill_run_dir(timed_dir(config.runs_dir, config.name), prepared.config)
    progress.say(f"run directory: {store.root}")
    with hold(store.root):
        keep_inputs(store, prepared.inputs, accept=False, say=progress.say, new=True)
        sit(prepared, store, progress)


def sit(
    prepared: Prepared,
    store: RunStore,
    progress: Progress,
    past: RunHistory | None = None,
    before: RunTotals | None = None,
    *,
    take_over: bool = False,
) -> None:
    """One sitting of a run, whose lock is held. `past` and `before`: of earlier ones, if any."""
    config, root = prepared.config, store.root
    advice = (
        f"interrupted: what was finished is in {root}; this goes on with it: stargate resume {root}"
    )
    with (
        interruptible(progress, advice),
        landing(config, root, progress, take_over=take_over),
        tracked(config, root, root.name, progress) as trackers,
    ):
        session = Session(
            prepared, store, progress, trackers, past or RunHistory(), before or RunTotals()
        )
        asyncio.run(session.run())


def tracked(
    config: RunConfig, root: Path, name: str, progress: Progress
) -> AbstractContextManager[Trackers]:
    """Where the run's figures go besides its directory, as long as the block lasts."""
    resolved = config.model_dump(mode="json")
    return open_trackers(config.tracking, root, name, resolved, progress.say)


def timed_dir(parent: Path, name: str) -> Path:
    """A new folder NAME-TIME; with a number behind it where other runs began in this second, as
    the tasks of a job array do. Raises ConfigError.
    """
    timed = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for root in (parent / f"{timed}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000)))):
        try:
            root.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _not_created(root, error.strerror) from error
        return root
    raise _not_created(parent / timed, "a thousand runs began in this second")


def _not_created(root: Path, problem: str | None) -> ConfigError:
    return ConfigError(f"runs_dir: can't create {root}: {problem}")


def make_dir(root: Path, config: RunConfig, *folders: str) -> RunStore:
    """A directory with the resolved config and these new folders in it. Raises ConfigError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            (root / folder).mkdir()
    except OSError as error:
        raise _not_created(root, error.strerror) from error
    store = RunStore(root)
    store.write_text("config.yaml", dump_config(config))
    return store


def fill_run_dir(root: Path, config: RunConfig) -> RunStore:
    """A new run directory, with the environment in it, too. Raises ConfigError."""
    store = make_dir(root, config, "logs", "models")
    store.write_json("environment.json", environment())
    return store


@dataclass(frozen=True)
class Session:
    """One process's work on a run: the loop with its parts, and the journal that it keeps.

    `past` and `before` are what earlier processes did and took, if there were any.
    """

    prepared: Prepared
    store: RunStore
    progress: Progress
    trackers: Trackers
    past: RunHistory = field(default_factory=RunHistory)
    before: RunTotals = field(default_factory=RunTotals)

    @cached_property
    def _journal(self) -> RunJournal:
        dropped = self.prepared.dataset.drop_counts
        cost = partial(roleplayer_cost, self.store.root)
        return RunJournal(self.store, self.trackers, self.past, self.before, dropped, cost)

    async def run(self) -> None:
        """Starts the actors and runs everything."""
        log_dir, counters = self.store.root.resolve() / "logs", self._journal.counters
        with self._kept():
            async with running_system(self.prepared, log_dir, counters, self.progress) as running:
                loop = self._loop(running)
                async with following(self.store.root, running.scaler, self.progress.say):
                    await loop.run()

    async def play_in(self, running: RunningSystem) -> None:
        """Runs everything with actors that run already, and go on running.

        They may hold what another run trained.
        """
        with self._kept():
            await self._loop(running, held=None).run()

    def _loop(self, running: RunningSystem, held: int | None = 0) -> TrainingLoop:
        prepared, last = self.prepared, self.past.num_iterations
        config = prepared.config
        if last and config.algorithm.start_from == "previous":
            # The trainer starts from the folder that it is told to be the base.
            folder = self.store.root.resolve() / "models" / f"m{last}"
            running = replace(running, prepared=replace(running.prepared, base_model_dir=folder))
        roles, context = running.open(config, self.store, self._journal.counters)
        evaluator = prepared.evaluator(config, config)
        return TrainingLoop(
            roles,
            context,
            prepared.train_pairs,
            evaluator,
            self._journal,
            prepared.base_model_dir,
            self.past,
            held,
            open_validation(prepared.validation_pairs(), evaluator, context),
        )

    @contextmanager
    def _kept(self) -> Iterator[None]:
        with self._journal.kept():
            if self.prepared.config.trust_remote_code:
                logging.getLogger(__name__).warning(REMOTE_CODE)
            yield
        shown = self.prepared.config.evaluation.show_dialogues
        print_summary(self._journal.summary, self.store, shown, self.progress)
