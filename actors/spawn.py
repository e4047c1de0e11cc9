"""Starts Ray and the actors, waits for them aloud, and ends them in order.

    Placement + RunConfig -> Crew: Questioner engines, Roleplayer engines, scorers, trainer ranks

Ray stays here and in pool.py: actors are plain classes, wrapped by `ray.remote` in this one place.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from stargate.actors.engine import Engine
from stargate.actors.engine_spec import EngineSpec, engine_environment
from stargate.actors.pool import remote
from stargate.actors.scorer import Scorer, ScorerSpec
from stargate.actors.trainer import TrainerRank, TrainerSpec
from stargate.config import RunConfig
from stargate.placement import Placement
from stargate.seeds import derive_seed

# Requests that one async actor takes at once: more than any run has in flight.
_MAX_CONCURRENCY = 10_000
# Seconds between lines that say what is still awaited.
_SPEAK_SECONDS = 30.0
# Seconds that an actor has to end by itself before it is killed. vLLM takes 7 to end in order, more
# when several end on one core; killed, it leaks shared memory.
_SHUTDOWN_SECONDS = 40.0
# Bytes of Ray's object store on one machine: it carries training examples, nothing large.
_OBJECT_STORE_BYTES = 300_000_000
_LOOPBACK = "127.0.0.1"


@dataclass
class Crew:
    """All actors of a run."""

    questioners: list[Any] = field(default_factory=list)
    roleplayers: list[Any] = field(default_factory=list)
    scorers: list[Any] = field(default_factory=list)
    trainers: list[Any] = field(default_factory=list)

    def all(self) -> list[Any]:
        return [*self.questioners, *self.roleplayers, *self.scorers, *self.trainers]


def start_ray(num_gpus: int) -> None:
    """Starts a Ray of this run's own on loopback. Its logs stay in Ray's session folder."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at nice 15: anything else on the machine would starve the engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_gpus=num_gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address=_LOOPBACK,
    )


@dataclass(frozen=True)
class CrewPlan:
    """What to start: the run's config, where each actor goes, which models, where logs go."""

    config: RunConfig
    placement: Placement
    base_model_dir: Path
    roleplayer_dir: Path
    log_dir: Path
    training: bool = True  # False: no trainer is started


async def start_crew(plan: CrewPlan, say: Callable[[str], None]) -> Crew:
    """Starts every actor, side by side. On failure all are ended before the error is raised."""
    crew = Crew()
    try:
        for number, cores in enumerate(plan.placement.questioner_cores):
            crew.questioners.append(_spawn_engine(plan, "questioner", number, cores))
        for number, cores in enumerate(plan.placement.roleplayer_cores):
            crew.roleplayers.append(_spawn_engine(plan, "roleplayer", number, cores))
        for number in range(plan.config.scorer.num_scorers):
            crew.scorers.append(_spawn_scorer(plan, number))
        if plan.training:
            port = _free_port()
            for rank in range(plan.config.trainer.num_ranks):
                crew.trainers.append(_spawn_trainer(plan, rank, port))
        await _start_all(crew, say)
    except BaseException:
        await stop_crew(crew)
        raise
    return crew


async def stop_crew(crew: Crew) -> None:
    """Ends every actor: asks it to shut down, then kills what has not ended in time."""
    calls = [asyncio.ensure_future(_shutdown(actor)) for actor in crew.all()]
    if calls:
        await asyncio.wait(calls, timeout=_SHUTDOWN_SECONDS)
    for actor in crew.all():
        ray.kill(actor)


async def _shutdown(actor: Any) -> None:
    try:
        await remote(actor.shutdown.remote())
    except Exception as error:  # it is killed right afterwards; the reason still belongs in the log
        logging.getLogger(__name__).warning("an actor did not shut down: %s", error)


async def _start_all(crew: Crew, say: Callable[[str], None]) -> None:
    """Waits for all to start; every 30 s says which are awaited. The first failure is raised."""
    names = {
        asyncio.ensure_future(remote(actor.start.remote())): f"{role}-{number}"
        for role, actors in (
            ("questioner", crew.questioners),
            ("roleplayer", crew.roleplayers),
            ("scorer", crew.scorers),
            ("trainer", crew.trainers),
        )
        for number, actor in enumerate(actors)
    }
    waiting = set(names)
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=_SPEAK_SECONDS, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            if waiting:
                say(f"setup: still waiting for {', '.join(sorted(names[t] for t in waiting))}")
    finally:
        for task in waiting:
            task.cancel()


def _spawn_engine(plan: CrewPlan, role: str, number: int, cores: str | None) -> Any:
    config = plan.config
    settings = config.questioner.engine if role == "questioner" else config.roleplayer.engine
    spec = EngineSpec(
        role=role,
        model_dir=str(plan.base_model_dir if role == "questioner" else plan.roleplayer_dir),
        config=settings,
        seed=derive_seed(config.seed, role, number),
        device=plan.placement.device,
        cpu_cores=cores,
        trust_remote_code=config.trust_remote_code,
        log_file=str(plan.log_dir / f"{role}-{number}.log"),
    )
    num_gpus = settings.tensor_parallel_size if plan.placement.device == "cuda" else 0
    return _actor(Engine, num_gpus, engine_environment(spec)).remote(spec)


def _spawn_scorer(plan: CrewPlan, number: int) -> Any:
    config, placement = plan.config.scorer, plan.placement
    spec = ScorerSpec(
        model_dir=str(plan.base_model_dir),
        config=config,
        num_threads=placement.scorer_threads,
        device=placement.device if config.num_gpus or placement.device == "cpu" else "cpu",
        log_file=str(plan.log_dir / f"scorer-{number}.log"),
        trust_remote_code=plan.config.trust_remote_code,
    )
    threads = {"OMP_NUM_THREADS": str(placement.scorer_threads)}
    return _actor(Scorer, config.num_gpus, threads).remote(spec)


def _spawn_trainer(plan: CrewPlan, rank: int, port: int) -> Any:
    config, placement = plan.config.trainer, plan.placement
    spec = TrainerSpec(
        base_model_dir=str(plan.base_model_dir),
        config=config,
        rank=rank,
        world_size=config.num_ranks,
        master_addr=_LOOPBACK,
        master_port=port,
        num_threads=placement.trainer_threads,
        device=placement.device if config.num_gpus_per_rank or placement.device == "cpu" else "cpu",
        log_file=str(plan.log_dir / f"trainer-{rank}.log"),
        trust_remote_code=plan.config.trust_remote_code,
        seed=derive_seed(plan.config.seed, "trainer"),
    )
    threads = {"OMP_NUM_THREADS": str(placement.trainer_threads)}
    return _actor(TrainerRank, config.num_gpus_per_rank, threads).remote(spec)


def _actor(cls: type, num_gpus: float, environment: dict[str, str]) -> Any:
    """A Ray actor class. Cores are shared out by placement.py, so Ray counts none."""
    return ray.remote(cls).options(
        num_cpus=0,
        num_gpus=num_gpus,
        max_concurrency=_MAX_CONCURRENCY,
        runtime_env={"env_vars": environment},
    )


def _free_port() -> int:
    """A port that was free a moment ago, for the trainer ranks to meet on."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
