"""All actors of a run, from their start to their end, and the parts of the loop that they are.

Prepared -> running_system: Ray and all actors -> Roles and RunContext of one run directory
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stargate.algorithm.base import build_algorithm
from stargate.algorithm.score_requests import GoldScoring
from stargate.config.roleplayer import ApiRoleplayerConfig
from stargate.config.run import RunConfig
from stargate.launch.setup import Prepared
from stargate.monitoring.progress import Progress
from stargate.oracle.roleplayer_call import ApiCall, open_roleplayer_oracle
from stargate.protocols import Generate
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.resources.gpu_phases import GpuPhase, GpuPhases
from stargate.resources.machine import core_numbers
from stargate.resources.models import context_length
from stargate.rollout.grounding import EmbeddingMatcher, open_matcher
from stargate.rollout.roleplayer import EngineCall, RoleplayerCall, build_roleplayer
from stargate.run_context import Roles, RunContext
from stargate.text.prompts import load_prompts
from stargate.types import PushResult

if TYPE_CHECKING:
    from stargate.actors.runtime.scaler import Scaler
    from stargate.actors.runtime.spawn import ActorGroup, ActorPlan


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
    actor_group: "ActorGroup"
    matcher: EmbeddingMatcher | None
    progress: Progress
    scaler: "Scaler | None" = None
    plan: "ActorPlan | None" = None
    ends: AsyncExitStack = field(default_factory=AsyncExitStack)  # what ends before the actors do

    def open(
        self, config: RunConfig, store: RunStore, counters: Counters
    ) -> tuple[Roles, RunContext]:
        """The parts of the loop for one run directory.

        `config` may differ from the one that the actors were started with in what the loop itself
        reads: selection, training target, seeds.
        """
        gc.freeze()  # what is loaded stays: a collection need not look at it again and again
        prepared = self.prepared
        self.actor_group.supervisor.begin(counters)
        scoring = GoldScoring(
            prepared.views, prepared.chat, context_length(prepared.base_model_dir)
        )
        context = RunContext(
            config=config,
            views=prepared.views,
            chat=prepared.chat,
            scoring=scoring,
            algorithm=build_algorithm(config, prepared.views, prepared.chat),
            store=store,
            counters=counters,
            progress=self.progress,
            overlap=prepared.placement.overlap,
            num_concurrent=config.num_concurrent_dialogues(prepared.placement.device),
        )
        return self._roles(config, store.root.resolve()), context

    def _roles(self, config: RunConfig, run_dir: Path) -> Roles:
        from stargate.actors.runtime.actor_slots import WORKER
        from stargate.actors.runtime.clients import (
            GuardedPool,
            GuardedWorkers,
            TrainerGroup,
        )
        from stargate.actors.runtime.scorer_clients import GatheredScore, ScoreDeadline, ScorerPool
        from stargate.actors.runtime.weight_pusher import WeightPusher

        prepared, actors = self.prepared, self.actor_group
        supervisor, turns = actors.supervisor, actors.turns
        workers = actors.places[WORKER]
        voice: Generate | None = None
        if isinstance(config.roleplayer, ApiRoleplayerConfig):
            oracle = open_roleplayer_oracle(config.roleplayer, run_dir)
            self.ends.push_async_callback(oracle.aclose)
            call: RoleplayerCall = ApiCall(oracle, config.roleplayer)
        else:
            voice = GuardedPool("roleplayer", actors.places["roleplayer"], supervisor)
            if turns is not None:  # here, because what answers is built with it
                voice = turns.during(GpuPhase.PLAY, voice)
            assert prepared.roleplayer_chat is not None  # who has an engine has a model
            call = EngineCall(voice, prepared.roleplayer_chat, config.roleplayer)
        roles = Roles(
            generate=GuardedPool("questioner", actors.places["questioner"], supervisor),
            roleplay=build_roleplayer(
                config.roleplayer, call, prepared.roleplayer_views, self.matcher, config.seed
            ),
            score=GatheredScore(
                ScorerPool(actors.places["scorer"], supervisor, ScoreDeadline.of(config.scorer))
            ),
            train=TrainerGroup(
                actors.places["trainer"],
                base_model_dir=prepared.base_model_dir,
                run_dir=run_dir,
                continue_training=config.algorithm.start_from == "previous",
                progress=self.progress,
                supervisor=supervisor,
            ),
            push=WeightPusher(actors.places["questioner"], supervisor),
            match=self.matcher,
            voice=voice,
            play=GuardedWorkers(workers, supervisor) if workers else None,
        )
        return roles if turns is None else take_turns(roles, turns)


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

    from stargate.actors.runtime import spawn
    from stargate.actors.runtime.cluster import Cluster
    from stargate.actors.runtime.discovery import attach
    from stargate.actors.runtime.scaler import Scaler

    discovery, cluster = prepared.discovery, None
    async with AsyncExitStack() as ends:
        device = prepared.placement.device if discovery is None else None
        python = ends.enter_context(spawn.shared_imports(device))
        ends.callback(ray.shutdown)
        with counters.stage("setup"), progress.stage("setup", 1, "group of actors") as stage:
            stage.begin()
            if discovery is None:
                spawn.start_ray(prepared.num_gpus)
            else:
                attach(discovery.address)
            _cancel_on_sigterm()  # after Ray, which sets a handler of its own
            matcher = open_matcher(prepared.config.roleplayer.grounding, prepared.embedder_dir)
            if matcher is not None:
                ends.callback(matcher.close)
            if discovery is not None:
                cluster = Cluster(discovery, prepared.base_model_dir, log_dir, progress.say)
                ends.push_async_callback(_shielded, cluster.close)
                await cluster.open()
            plan = spawn.ActorPlan(
                config=prepared.config,
                placement=prepared.placement,
                base_model_dir=prepared.base_model_dir,
                roleplayer_dir=prepared.roleplayer_dir,
                log_dir=log_dir,
                training=training,
                worker=worker_spec(prepared),
                cluster=cluster,
                python=python,
                **changes,
            )
            actor_group = await spawn.start_actors(plan, progress.say)
            ends.push_async_callback(_shielded, spawn.stop_actors, actor_group)
            scaler = Scaler(plan, actor_group, core_numbers(), prepared.num_gpus, progress.say)
            stage.advance()
        yield RunningSystem(prepared, actor_group, matcher, progress, scaler, plan, ends)


async def _shielded(end: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    """A second Ctrl-C must not leave engines behind that the first one meant to end."""
    ending = asyncio.ensure_future(end(*arguments))
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await asyncio.wait({ending})  # or Ray would be shut down under it
        raise


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


def _cancel_on_sigterm() -> None:
    """SIGTERM ends the run as Ctrl-C does: in order, with a summary."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
