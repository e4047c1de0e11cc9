"""Everything that a command needs before it can play: checks first, then actors, and their end.

RunConfig -> Prepared (models, data, prompts; nothing is started yet)
          -> running_system: Ray and all actors -> Roles and RunContext of one run directory
"""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stargate.algorithm.base import build_algorithm
from stargate.algorithm.scoring import GoldScoring
from stargate.config.run import FactsGrounding, RunConfig
from stargate.data.dataset import Dataset, load_dataset
from stargate.errors import ConfigError
from stargate.evaluation.evaluator import Evaluator
from stargate.evaluation.playing import EvaluationPairs
from stargate.monitoring.progress import Progress
from stargate.monitoring.tracking import check_installed
from stargate.protocols import Generate
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.resources.gpu_phases import GpuPhase, GpuPhases, check_phases
from stargate.resources.machine import describe_machine, usable_cores
from stargate.resources.models import context_length, resolve_embedder, resolve_model
from stargate.resources.placement import Placement, place
from stargate.resources.submission import cluster_address
from stargate.rollout.roleplayer import build_roleplayer, require_facts
from stargate.run_context import Roles, RunContext
from stargate.text.chat import ChatFormat, load_chat_format
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Pair, PushResult

# Said on the screen before a model is opened, and in the run's log.
REMOTE_CODE = (
    "trust_remote_code is true: Python files that come with the models run on this machine, as you"
)


@dataclass(frozen=True)
class Prepared:
    """Everything that was checked before the first actor starts."""

    config: RunConfig
    dataset: Dataset
    test_pairs: EvaluationPairs
    base_model_dir: Path
    roleplayer_dir: Path
    embedder_dir: Path | None
    views: Views
    roleplayer_views: Views
    chat: ChatFormat
    roleplayer_chat: ChatFormat
    placement: Placement
    num_gpus: int
    # actors/runtime/discovery.py: Discovery of the cluster that the run attaches to; None: own Ray.
    discovery: Any = None

    def train_pairs(self, iteration: int) -> list[Pair]:
        """The pairs of iteration t: the splits take turns (A for even t, B for odd t)."""
        data = self.config.data
        split = data.train_splits[iteration % len(data.train_splits)]
        return self.dataset.pairs(split, data.train)

    def evaluator(self, config: RunConfig, trained: RunConfig) -> Evaluator:
        """Measures checkpoints of a run that was trained with `trained` as `config` says."""
        return Evaluator(
            config=config,
            trained=trained,
            pairs=self.test_pairs,
            base_model_dir=self.base_model_dir,
            chat=self.chat,
            voice_chat=self.roleplayer_chat,
            voice_dir=self.roleplayer_dir,
        )


def prepare(config: RunConfig, say: Callable[[str], None], training: bool = True) -> Prepared:
    """Resolves models, data and prompts, and checks that they fit together.

    Without `training` the data need no train splits. Raises StargateError.
    """
    if config.trust_remote_code:
        say(REMOTE_CODE)
    grounded = isinstance(config.roleplayer.grounding, FactsGrounding)
    if training:
        check_installed(config.tracking)
        if config.algorithm.questions == "answered" and not grounded:
            raise ConfigError(
                "algorithm.questions=answered needs roleplayer.grounding.type=facts: otherwise it "
                "is not known which questions were answered"
            )
    dataset = load_dataset(config.data)
    for record in dataset.dropped:
        say(f"dropped: {record.reason}: {record.where}")
    machine = describe_machine()
    discovery = _discovery(config, say, training)
    if discovery is not None:
        placement = discovery.placement
    else:
        cores = sorted(os.sched_getaffinity(0))[: machine.cores]
        gpu_gib = machine.gpus[0].memory_gb if machine.gpus else None
        placement = place(config, cores, len(machine.gpus), gpu_gib=gpu_gib, training=training)
    views = Views(load_prompts(config.prompts))
    base = resolve_model(config.model, trust_remote_code=config.trust_remote_code)
    other = resolve_model(config.roleplayer.model, trust_remote_code=config.trust_remote_code)
    data = config.data
    prepared = Prepared(
        config=config,
        dataset=dataset,
        test_pairs=EvaluationPairs(
            dataset.pairs(data.test_split, data.test),
            dataset.plain_pairs(data.test_split, data.test),
        ),
        base_model_dir=base,
        roleplayer_dir=other,
        embedder_dir=resolve_embedder() if grounded else None,
        views=views,
        roleplayer_views=Views(load_prompts(config.roleplayer.prompts or config.prompts)),
        chat=load_chat_format(str(base), config.trust_remote_code),
        roleplayer_chat=load_chat_format(str(other), config.trust_remote_code),
        placement=placement,
        # Of several GPUs Ray would give out the others, too, where all actors must share one.
        num_gpus=1 if placement.gpu_share else len(machine.gpus),
        discovery=discovery,
    )
    if placement.gpu_share and machine.gpus and discovery is None:
        _check_shared_gpu(prepared, machine.gpus[0].memory_gb, training)
    if grounded:
        require_facts(prepared.test_pairs.all)
    if training:
        say(placement.schedule)
        for iteration in range(min(config.schedule.num_iterations, len(data.train_splits))):
            pairs = prepared.train_pairs(iteration)
            if grounded:
                require_facts(pairs)
    return prepared


def _check_shared_gpu(prepared: Prepared, gpu_gib: float, training: bool) -> None:
    """Raises MachineError when m_0 is too large for the one GPU that all share."""
    from stargate.actors.engines.weight_files import num_parameters, read_headers

    parameters = num_parameters(read_headers(str(prepared.base_model_dir)))
    check_phases(prepared.config, gpu_gib, parameters, training=training)


def _discovery(config: RunConfig, say: Callable[[str], None], training: bool) -> Any:
    """Finds room on the cluster that the config or a submitted job names; None if neither does."""
    address = cluster_address(config, os.environ)
    if address is None:
        return None
    from stargate.actors.runtime.discovery import discover_cluster

    return discover_cluster(config, address, say, training=training)


def take_turns(roles: Roles, turns: GpuPhases) -> Roles:
    """The same parts, each of which waits for its phase on the GPU that all share.

    `voice`, and with it `roleplay`, does so already. A dialogue worker plays within one phase.
    """

    async def push(model_dir: str, version: int) -> PushResult:
        async with turns.on(GpuPhase.PUSH):
            pushed = await roles.push(model_dir, version)
            turns.woken("questioner")
        return pushed

    return replace(
        roles,
        generate=turns.during(GpuPhase.PLAY, roles.generate),
        score=turns.during(GpuPhase.SCORE, roles.score),
        train=turns.during(GpuPhase.TRAIN, roles.train),
        push=push,
        play=None if roles.play is None else turns.during(GpuPhase.PLAY, roles.play),
    )


@dataclass(frozen=True)
class RunningSystem:
    """Running actors. `open` hands them out for one run directory at a time."""

    prepared: Prepared
    actor_group: Any
    matcher: Any
    progress: Progress
    scaler: Any = None  # actors/runtime/scaler.py: Scaler
    plan: Any = None  # actors/runtime/spawn.py: ActorPlan

    def open(
        self, config: RunConfig, store: RunStore, counters: Counters
    ) -> tuple[Roles, RunContext]:
        """The parts of the loop for one run directory.

        `config` may differ from the one that the actors were started with in what the loop itself
        reads: selection, training target, seeds.
        """
        from stargate.actors.rpc.clients import (
            GuardedPool,
            GuardedWorkers,
            TrainerGroup,
            WeightPusher,
        )
        from stargate.actors.rpc.scorers import GatheredScore, ScoreDeadline, ScorerPool

        gc.freeze()  # what is loaded stays: a collection need not look at it again and again
        prepared = self.prepared
        supervisor = self.actor_group.supervisor
        supervisor.begin(counters)
        voice: Generate = GuardedPool("roleplayer", self.actor_group.roleplayers, supervisor)
        if self.actor_group.turns is not None:  # here, because what answers is built with it
            voice = self.actor_group.turns.during(GpuPhase.PLAY, voice)
        roles = Roles(
            generate=GuardedPool("questioner", self.actor_group.questioners, supervisor),
            roleplay=build_roleplayer(
                config.roleplayer,
                voice,
                prepared.roleplayer_chat,
                prepared.roleplayer_views,
                self.matcher,
            ),
            score=GatheredScore(
                ScorerPool(self.actor_group.scorers, supervisor, ScoreDeadline.of(config.scorer))
            ),
            train=TrainerGroup(
                self.actor_group.trainers,
                base_model_dir=prepared.base_model_dir,
                models_dir=store.root.resolve() / "models",
                run_dir=store.root.resolve(),
                continue_training=config.algorithm.start_from == "previous",
                progress=self.progress,
                supervisor=supervisor,
                file_access=self.actor_group.file_access,
            ),
            push=WeightPusher(
                self.actor_group.questioners, supervisor, self.actor_group.file_access
            ),
            voice=voice,
            play=GuardedWorkers(self.actor_group.workers, supervisor)
            if self.actor_group.workers
            else None,
        )
        context = RunContext(
            config=config,
            views=prepared.views,
            chat=prepared.chat,
            scoring=GoldScoring(
                prepared.views, prepared.chat, context_length(prepared.base_model_dir)
            ),
            algorithm=build_algorithm(config, prepared.views, prepared.chat),
            store=store,
            counters=counters,
            progress=self.progress,
            overlap=prepared.placement.overlap,
        )
        if self.actor_group.turns is not None:
            roles = take_turns(roles, self.actor_group.turns)
        return roles, context


@asynccontextmanager
async def running_system(
    prepared: Prepared,
    log_dir: Path,
    counters: Counters,
    progress: Progress,
    training: bool = True,
    **changes: Any,
) -> AsyncIterator[RunningSystem]:
    """Starts Ray and all actors, and ends them whatever happens. Without `training`: no trainer.

    `changes`: fields of ActorPlan, where a benchmark starts something else.
    """
    import ray

    from stargate.actors.runtime.cluster import Cluster
    from stargate.actors.runtime.discovery import attach
    from stargate.actors.runtime.scaler import Scaler
    from stargate.actors.runtime.spawn import ActorPlan, start_actors, start_ray, stop_actors

    matcher = None
    actor_group = None
    cluster = None
    try:
        with counters.stage("setup"), progress.stage("setup", 1, "group of actors") as stage:
            stage.begin()
            if prepared.discovery is None:
                start_ray(prepared.num_gpus)
            else:
                attach(prepared.discovery.address)
            _cancel_on_sigterm()  # after Ray, which sets a handler of its own
            if prepared.discovery is not None:
                cluster = Cluster(
                    prepared.discovery, prepared.base_model_dir, log_dir, progress.say
                )
                await cluster.open()
            matcher = fact_matcher(prepared)
            plan = ActorPlan(
                config=prepared.config,
                placement=prepared.placement,
                base_model_dir=prepared.base_model_dir,
                roleplayer_dir=prepared.roleplayer_dir,
                log_dir=log_dir,
                training=training,
                worker=worker_spec(prepared),
                cluster=cluster,
                **changes,
            )
            actor_group = await start_actors(plan, progress.say)
            cores = sorted(os.sched_getaffinity(0))[: usable_cores()]
            scaler = Scaler(plan, actor_group, cores, prepared.num_gpus, progress.say)
            stage.advance()
        yield RunningSystem(prepared, actor_group, matcher, progress, scaler, plan)
    finally:
        # Shielded: a second Ctrl-C must not leave engines behind that the first one meant to end.
        if actor_group is not None:
            await asyncio.shield(stop_actors(actor_group))
        if cluster is not None:
            await asyncio.shield(cluster.close())
        if matcher is not None:
            matcher.close()
        ray.shutdown()


def worker_spec(prepared: Prepared) -> Any:
    """What dialogue workers know; None if the driver plays the dialogues itself."""
    config = prepared.config
    if not config.rollout.num_workers:
        return None
    from stargate.actors.runtime.dialogue_worker import WorkerSpec

    return WorkerSpec(
        config=config,
        base_model_dir=str(prepared.base_model_dir),
        roleplayer_dir=str(prepared.roleplayer_dir),
        embedder_dir=str(prepared.embedder_dir) if prepared.embedder_dir else None,
        prompts=load_prompts(config.prompts).model_dump(),
        roleplayer_prompts=load_prompts(config.roleplayer.prompts or config.prompts).model_dump(),
    )


def fact_matcher(prepared: Prepared) -> Any:
    grounding = prepared.config.roleplayer.grounding
    if prepared.embedder_dir is None or not isinstance(grounding, FactsGrounding):
        return None
    from stargate.rollout.grounding import EmbeddingMatcher

    return EmbeddingMatcher(prepared.embedder_dir, grounding)


def _cancel_on_sigterm() -> None:
    """SIGTERM ends the run as Ctrl-C does: in order, with a summary."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
