"""One run from start to end: check, start actors, evaluate, iterate, evaluate, judge, stop.

RunConfig -> prepared (checked) -> run directory -> actors
          -> evaluate m_0 -> [iteration t -> evaluate m_{t+1}] x T -> judge
          -> eval.json, summary.json

A session may be the second of its run (`stargate resume`): then `past` says what is done, and only
the rest is made.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stargate.config.files import dump_config
from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.evaluation.playing import scope_of
from stargate.launch.evaluating import Evaluator
from stargate.launch.scaling import following
from stargate.launch.setup import (
    REMOTE_CODE,
    Prepared,
    RunningSystem,
    prepare,
    workshop,
)
from stargate.launch.shared import check_records, landing
from stargate.launch.summary import print_summary, summarise_run
from stargate.monitoring.progress import Progress, make_progress, safe_text
from stargate.monitoring.scalars import RunScalars
from stargate.monitoring.tracking import Trackers, open_trackers
from stargate.pair_steps import Roles, RunContext, make_examples, run_iteration
from stargate.protocols import Train
from stargate.records.counters import Counters
from stargate.records.files import hold
from stargate.records.repair import set_aside_files
from stargate.records.resume import RunHistory, RunTotals, count_rollouts, train_file
from stargate.records.store import RunStore
from stargate.records.training_checkpoints import remove_training, training_folder
from stargate.resources.machine import environment
from stargate.resources.memory import MemoryPeak, PeakMemory
from stargate.types import IterationResult, PushResult, TrainingExample, TrainResult


def run_session(config: RunConfig) -> int:
    """Runs one config. Returns 0, or 130 after Ctrl-C or SIGTERM; raises StargateError."""
    progress = make_progress()
    check_records(config)
    prepared = prepare(config, progress.say)
    store = create_run_dir(config)
    progress.say(f"run directory: {store.root}")
    with hold(store.root):
        return sit(prepared, store, progress)


def sit(
    prepared: Prepared,
    store: RunStore,
    progress: Progress,
    history: RunHistory | None = None,
    before: RunTotals | None = None,
    *,
    take_over: bool = False,
) -> int:
    """One sitting of a run, whose lock is held. Returns 0, or 130 after Ctrl-C or SIGTERM."""
    config = prepared.config
    resolved = config.model_dump(mode="json")
    try:
        with (
            landing(config, store.root, progress, take_over=take_over),
            open_trackers(
                config.tracking, store.root, store.root.name, resolved, progress.say
            ) as trackers,
        ):
            session = Session(prepared, store, progress, trackers, history, before)
            asyncio.run(session.run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress.say(
            f"interrupted: what was finished is in {store.root}; "
            f"this goes on with it: stargate resume {store.root}"
        )
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
        self,
        prepared: Prepared,
        store: RunStore,
        progress: Progress,
        trackers: Trackers,
        history: RunHistory | None = None,
        before: RunTotals | None = None,
    ) -> None:
        """`history` and `before` are what earlier sittings did and took, if there were any."""
        self._prepared = prepared
        self._config = prepared.config
        self._store = store
        self._progress = progress
        self._past = history or RunHistory()
        before = before or RunTotals()
        self._before = replace(before, count=before.count + 1)
        self._counters = before.new_counters()
        self._trackers = trackers
        self._scalars = RunScalars(self._counters, self._past.num_steps)
        self._evaluator = Evaluator(prepared, prepared.config, prepared.config)
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._iterations: list[IterationResult] = []
        self._loaded = 0  # the version that the Questioner's engines hold
        self._settled = self._before  # all sittings, up to the last iteration or evaluation
        self._memory = PeakMemory()
        self._started = time.perf_counter()

    async def run(self) -> None:
        """Starts the actors and runs everything."""
        log_dir = self._store.root.resolve() / "logs"
        with self._recorded():
            async with workshop(self._prepared, log_dir, self._counters, self._progress) as running:
                parts = self._open(running)
                async with following(self._store.root, running.scaler, self._progress.say):
                    await self._play(*parts)

    async def play_in(self, running: RunningSystem) -> None:
        """Runs everything with actors that run already, and go on running.

        They may hold what another run trained, so m_0 is pushed first.
        """
        with self._recorded():
            roles, context = self._open(running)
            await roles.push(str(self._prepared.base_model_dir), 0)
            await self._play(roles, context)

    def _open(self, running: RunningSystem) -> tuple[Roles, RunContext]:
        """The parts of the loop; training results are kept as soon as they are there."""
        last = self._past.num_iterations
        if last and self._config.trainer.start_from == "previous":
            # The trainer starts from the folder that it is told to be the base.
            prepared = replace(running.prepared, base_model_dir=self._model_dir(last))
            running = replace(running, prepared=prepared)
        roles, context = running.open(self._config, self._store, self._counters)
        return replace(roles, train=self._keeping(roles.train)), context

    def _keeping(self, train: Train) -> Train:
        async def keep(examples: Sequence[TrainingExample], version: int) -> TrainResult:
            trained = await train(examples, version)
            self._store.write_json(train_file(f"t{version - 1}"), asdict(trained))
            self._remove_checkpoints(version)
            return trained

        return keep

    def _remove_checkpoints(self, version: int) -> None:
        """Those of a training whose result is on record."""
        folder = training_folder(self._store.root, version)
        try:
            remove_training(folder)
        except OSError as error:
            self._progress.say(f"{folder}: can't be removed: {error.strerror}")

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Logs, and writes what was measured also when the run ends early."""
        self._started = time.perf_counter()
        self._before.write(self._store)
        with self._memory, _logged(self._store.root / "logs" / "driver.log"):
            if self._config.trust_remote_code:
                logging.getLogger(__name__).warning(REMOTE_CODE)
            status = "finished"
            try:
                yield
            except BaseException as error:
                status = f"stopped: {type(error).__name__}: {' '.join(str(error).split())}".strip(
                    ": "
                )
                raise
            finally:
                summary = self._summary(status)
                self._store.write_json("summary.json", summary)
        print_summary(summary, self._store, self._config.evaluation.show_dialogues, self._progress)

    def _summary(self, status: str) -> dict[str, Any]:
        """summary.json: of all sittings together."""
        total = self._so_far()
        summary = summarise_run(
            counters=total,
            evaluations=self._evaluations,
            iterations=self._iterations,
            status=status,
            seconds=total.seconds,
            peak=MemoryPeak(total.peak_gb, total.peak_measure, 0),
            data_dropped=self._prepared.dataset.drop_counts,
        )
        summary["tracking_lost"] = dict(total.tracking_lost)
        summary["sittings"] = total.count
        summary["damaged_files"] = set_aside_files(self._store.root)
        if total.count > 1 and "rollout" in summary:
            # The rate stays that of the sittings that could say how long they took.
            num_dialogues, num_tokens = count_rollouts(self._store, total)
            summary["rollout"]["num_dialogues"] = num_dialogues
            summary["rollout"]["generated_tokens"] = num_tokens
        if status != "finished":
            # What is under way is dropped again by the next sitting, if it must be: count it once.
            total = replace(
                total,
                dropped=self._settled.dropped,
                dropped_examples=self._settled.dropped_examples,
            )
        total.write(self._store)
        return summary

    def _so_far(self) -> RunTotals:
        seconds = time.perf_counter() - self._started
        return self._before.plus(self._counters, seconds, self._memory.peak(), self._trackers.lost)

    def _settle(self) -> None:
        """After an iteration or evaluation: what was taken so far survives a kill."""
        self._settled = self._so_far()
        self._settled.write(self._store)

    async def _play(self, roles: Roles, context: RunContext) -> None:
        await self._evaluate(0, roles, context)
        num_iterations = self._config.schedule.num_iterations
        for iteration in range(num_iterations):
            if iteration < self._past.num_iterations:
                self._remove_checkpoints(iteration + 1)  # killed just before it could do so
                await self._recall(iteration, roles, context)
            else:
                await self._load(iteration, roles)
                pairs = self._prepared.train_pairs(iteration)
                result = await run_iteration(iteration, pairs, roles, context)
                self._loaded = iteration + 1
                self._note(iteration, result)
            await self._evaluate(iteration + 1, roles, context)
        if self._config.evaluation.enabled:
            await self._evaluator.judge(range(num_iterations + 1), roles, context)
            self._evaluator.write(self._store)

    async def _recall(self, iteration: int, roles: Roles, context: RunContext) -> None:
        """An iteration that an earlier sitting has finished; lost records of it are made again."""
        scope = f"t{iteration}"
        if self._store.damaged(scope):
            await self._load(iteration, roles)
            await make_examples(scope, self._prepared.train_pairs(iteration), roles, context)
            context.store.compact(scope)
        if iteration in self._past.results:
            result = self._past.results[iteration]
            if result is not None:
                self._iterations.append(result)
        elif iteration in self._past.trained:
            # It was killed between training and the end of the weight push.
            pushed = await self._load(iteration + 1, roles)
            assert pushed is not None
            self._note(iteration, IterationResult(self._past.trained[iteration], pushed))
        else:
            self._progress.say(f"iteration {iteration}: what its training did is not on record")

    async def _load(self, version: int, roles: Roles) -> PushResult | None:
        """Puts m_`version` into the Questioner's engines; None if they hold it already."""
        if self._loaded == version:
            return None
        with self._counters.stage("push"):
            pushed = await roles.push(str(self._model_dir(version)), version)
        self._loaded = version
        return pushed

    def _model_dir(self, version: int) -> Path:
        if version == 0:
            return self._prepared.base_model_dir
        return self._store.root.resolve() / "models" / f"m{version}"

    def _note(self, iteration: int, result: IterationResult) -> None:
        self._iterations.append(result)
        self._store.append_metrics(iteration_event(iteration, result, self._counters))
        self._trackers.log_all(self._scalars.iteration(iteration, result.trained, result.pushed))
        self._settle()

    async def _evaluate(self, version: int, roles: Roles, context: RunContext) -> None:
        if not self._config.evaluation.enabled:
            return
        name, scope = f"m{version}", scope_of(version)
        known = self._past.evaluations.get(version)
        if known is not None and not self._store.damaged(scope):
            self._evaluations[name] = known
            self._evaluator.recall(version, self._store)
            return
        await self._load(version, roles)
        evaluation = await self._evaluator.checkpoint(version, roles, context)
        self._evaluations[name] = measures = evaluation.measures
        if known is None:
            self._store.append_metrics({"event": "evaluation", "version": version, **measures})
            self._trackers.log_all(self._scalars.evaluation(version, measures))
        self._evaluator.write(self._store)
        self._settle()


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


def iteration_event(iteration: int, result: IterationResult, counters: Counters) -> dict[str, Any]:
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
        "num_validation_examples": trained.num_validation_examples,
        "num_tokens": trained.num_tokens,
        "num_loss_tokens": trained.num_loss_tokens,
        "num_repeated_steps": trained.num_repeated_steps,
        "train_seconds": trained.seconds,
        "num_engines": pushed.num_engines,
        "push_seconds": pushed.seconds,
        "push_phases": pushed.phases,
        "dropped": dict(counters.dropped),
    }
