"""One run from start to end on this machine: check, start actors, evaluate, iterate, evaluate,
stop.

RunConfig -> models, data, prompts (all checked before anything starts) -> run directory
          -> actors -> evaluate m_0 -> [iteration t -> evaluate m_{t+1}] x T -> summary.json
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stargate.chat import ChatFormat, load_chat_format
from stargate.config import FactsGrounding, RunConfig, dump_config
from stargate.data.dataset import Dataset, load_dataset
from stargate.errors import ConfigError
from stargate.evaluation.controls import ControlScore, evaluate
from stargate.iteration import IterationResult, Roles, Workbench, run_iteration
from stargate.machine import describe_machine, environment
from stargate.memory import PeakMemory
from stargate.models import context_length, resolve_embedder, resolve_model
from stargate.placement import Placement, place
from stargate.progress import Progress, make_progress
from stargate.prompts import load_prompts
from stargate.roleplayer import build_roleplayer, require_facts
from stargate.scoring import GoldScoring
from stargate.store import RunStore
from stargate.summary import print_summary, summarise_run
from stargate.tally import Tally
from stargate.types import Pair
from stargate.views import Views


@dataclass(frozen=True)
class Prepared:
    """Everything that was checked before the first actor starts."""

    config: RunConfig
    dataset: Dataset
    test_pairs: list[Pair]
    base_model_dir: Path
    roleplayer_dir: Path
    embedder_dir: Path | None
    views: Views
    chat: ChatFormat
    roleplayer_chat: ChatFormat
    placement: Placement
    num_gpus: int

    def train_pairs(self, iteration: int) -> list[Pair]:
        """The pairs of iteration t: the splits take turns (A for even t, B for odd t)."""
        data = self.config.data
        split = data.train_splits[iteration % len(data.train_splits)]
        return self.dataset.pairs(split, data.train)


def run_session(config: RunConfig) -> int:
    """Runs one config. Returns 0, or 130 after Ctrl-C or SIGTERM; raises StargateError."""
    progress = make_progress()
    prepared = prepare(config, progress.say)
    store = create_run_dir(config)
    progress.say(f"run directory: {store.root}")
    session = Session(prepared, store, progress)
    try:
        asyncio.run(session.run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress.say(f"interrupted: what was finished is in {store.root}")
        return 130
    return 0


def prepare(config: RunConfig, say: Callable[[str], None]) -> Prepared:
    """Resolves models, data and prompts, and checks that they fit together.

    Raises StargateError.
    """
    dataset = load_dataset(config.data)
    for record in dataset.dropped:
        say(f"dropped: {record.reason}: {record.where}")
    machine = describe_machine()
    placement = place(config, sorted(os.sched_getaffinity(0))[: machine.cores], len(machine.gpus))
    views = Views(load_prompts(config.prompts))
    base = resolve_model(config.model, trust_remote_code=config.trust_remote_code)
    other = resolve_model(config.roleplayer.model, trust_remote_code=config.trust_remote_code)
    grounded = isinstance(config.roleplayer.grounding, FactsGrounding)
    prepared = Prepared(
        config=config,
        dataset=dataset,
        test_pairs=dataset.pairs(config.data.test_split, config.data.test),
        base_model_dir=base,
        roleplayer_dir=other,
        embedder_dir=resolve_embedder() if grounded else None,
        views=views,
        chat=load_chat_format(str(base), config.trust_remote_code),
        roleplayer_chat=load_chat_format(str(other), config.trust_remote_code),
        placement=placement,
        num_gpus=len(machine.gpus),
    )
    for iteration in range(min(config.schedule.num_iterations, len(config.data.train_splits))):
        pairs = prepared.train_pairs(iteration)
        if grounded:
            require_facts(pairs)
    if grounded:
        require_facts(prepared.test_pairs)
    return prepared


def create_run_dir(config: RunConfig) -> RunStore:
    """A new folder runs_dir/NAME-TIME with the resolved config and the environment in it."""
    name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    root = config.runs_dir / name
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

    def __init__(self, prepared: Prepared, store: RunStore, progress: Progress) -> None:
        self._prepared = prepared
        self._config = prepared.config
        self._store = store
        self._progress = progress
        self._tally = Tally()
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._iterations: list[IterationResult] = []
        self._fixed_controls: tuple[ControlScore, ...] = ()
        log = logging.FileHandler(store.root / "logs" / "driver.log", encoding="utf-8")
        log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(log)

    async def run(self) -> None:
        """Runs everything; what was measured is written also when it ends early."""
        started = time.perf_counter()
        with PeakMemory() as memory:
            status = "finished"
            try:
                async with self._roles() as (roles, bench):
                    await self._play(roles, bench)
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
                self._store.write_json("summary.json", summary)
        print_summary(summary, self._store, self._config.evaluation.show_dialogues, self._progress)

    async def _play(self, roles: Roles, bench: Workbench) -> None:
        await self._evaluate(0, roles, bench)
        for iteration in range(self._config.schedule.num_iterations):
            pairs = self._prepared.train_pairs(iteration)
            result = await run_iteration(iteration, pairs, roles, bench)
            self._iterations.append(result)
            self._store.append_metrics(
                {
                    "event": "iteration",
                    "iteration": iteration,
                    "train_losses": result.trained.losses,
                    "grad_norms": result.trained.grad_norms,
                    "learning_rates": result.trained.learning_rates,
                    "validation_loss": result.trained.validation_loss,
                    "num_examples": result.trained.num_examples,
                    "train_seconds": result.trained.seconds,
                    "push_seconds": result.pushed.seconds,
                    "push_phases": result.pushed.phases,
                    "dropped": dict(self._tally.dropped),
                }
            )
            await self._evaluate(iteration + 1, roles, bench)

    async def _evaluate(self, version: int, roles: Roles, bench: Workbench) -> None:
        if not self._config.evaluation.enabled:
            return
        pairs = self._prepared.test_pairs
        evaluation = await evaluate(version, pairs, roles, bench, self._fixed_controls)
        self._fixed_controls = evaluation.fixed
        measures = evaluation.measures
        self._evaluations[f"m{version}"] = measures
        self._store.append_metrics({"event": "evaluation", "version": version, **measures})

    @asynccontextmanager
    async def _roles(self) -> AsyncIterator[tuple[Roles, Workbench]]:
        """Starts Ray and all actors, and ends them whatever happens."""
        import ray

        from stargate.actors.pool import EnginePool, ScorerPool, TrainerGroup, WeightPusher
        from stargate.actors.spawn import CrewPlan, start_crew, start_ray, stop_crew

        prepared, config = self._prepared, self._config
        matcher = None
        crew = None
        try:
            with self._tally.stage("setup"), self._progress.stage("setup", 1, "crew") as stage:
                stage.begin()
                start_ray(prepared.num_gpus)
                _cancel_on_sigterm()  # after Ray, which sets a handler of its own
                matcher = self._matcher()
                crew = await start_crew(
                    CrewPlan(
                        config=config,
                        placement=prepared.placement,
                        base_model_dir=prepared.base_model_dir,
                        roleplayer_dir=prepared.roleplayer_dir,
                        log_dir=self._store.root.resolve() / "logs",
                    ),
                    self._progress.say,
                )
                stage.advance()
            trainer = TrainerGroup(
                crew.trainers,
                base_model_dir=prepared.base_model_dir,
                models_dir=self._store.root.resolve() / "models",
                continue_training=config.trainer.start_from == "previous",
                progress=self._progress,
            )
            roleplay = build_roleplayer(
                config.roleplayer,
                EnginePool(crew.roleplayers),
                prepared.roleplayer_chat,
                prepared.views,
                matcher,
            )
            roles = Roles(
                generate=EnginePool(crew.questioners),
                roleplay=roleplay,
                score=ScorerPool(crew.scorers),
                train=trainer,
                push=WeightPusher(crew.questioners),
            )
            yield roles, self._bench()
        finally:
            # Shielded: a second Ctrl-C must not leave engines behind that the first one meant to
            # end.
            if crew is not None:
                await asyncio.shield(stop_crew(crew))
            if matcher is not None:
                matcher.close()
            ray.shutdown()

    def _bench(self) -> Workbench:
        prepared = self._prepared
        length = context_length(prepared.base_model_dir)
        return Workbench(
            config=self._config,
            views=prepared.views,
            chat=prepared.chat,
            scoring=GoldScoring(prepared.views, prepared.chat, length),
            store=self._store,
            tally=self._tally,
            progress=self._progress,
            overlap=prepared.placement.overlap,
        )

    def _matcher(self) -> Any:
        grounding = self._config.roleplayer.grounding
        if self._prepared.embedder_dir is None or not isinstance(grounding, FactsGrounding):
            return None
        from stargate.grounding import EmbeddingMatcher

        return EmbeddingMatcher(self._prepared.embedder_dir, grounding)


def _cancel_on_sigterm() -> None:
    """SIGTERM ends the run as Ctrl-C does: in order, with a summary."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
