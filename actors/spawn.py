"""Starts Ray and the actors, waits for them aloud, and ends them in order.

    Placement + RunConfig -> Crew: Questioner engines, Roleplayer engines, scorers, trainer ranks

Ray stays here and in pool.py: actors are plain classes, wrapped by `ray.remote` in this one place.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from stargate.actors.carrier import Carrier, SameFiles, Spot
from stargate.actors.cluster import Cluster
from stargate.actors.dialogue_worker import DialogueWorker, WorkerSpec
from stargate.actors.engine import Engine
from stargate.actors.engine_spec import EngineSpec, engine_environment
from stargate.actors.keeper import WORKER, HeldWeights, Hire, Keeper, Post
from stargate.actors.remote import ActorDied, remote
from stargate.actors.scorer import Scorer, ScorerSpec
from stargate.actors.survey import WORKER_ENVIRONMENT
from stargate.actors.trainer import TrainerRank, TrainerSpec
from stargate.config import RunConfig
from stargate.placement import Placement
from stargate.seeds import derive_seed
from stargate.submission import JOB_VARIABLES

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
    workers: list[Any] = field(default_factory=list)
    carrier: Carrier = field(default_factory=SameFiles)
    keeper: Keeper | None = None  # from the moment on that everybody has started

    def all(self) -> list[Any]:
        return [*self.workers, *self.questioners, *self.roleplayers, *self.scorers, *self.trainers]


def start_ray(num_gpus: int) -> None:
    """Starts a Ray of this run's own on loopback. Its logs stay in Ray's session folder."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at nice 15: anything else on the machine would starve the engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for variable in JOB_VARIABLES:
        os.environ.pop(variable, None)
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
    scoring: bool = True  # False: no scorer is started
    engine_class: type[Engine] = Engine  # a benchmark's engine also keeps records
    worker: WorkerSpec | None = None  # None: no dialogue worker is started
    cluster: Cluster | None = None  # None: everybody is on this machine

    def spot(self, role: str, number: int, cores: str | None, threads: int) -> Spot:
        """Where an actor is hired; `cores` and `threads` are those that it has on this machine."""
        if self.cluster is not None:
            return self.cluster.spot(f"{role}-{number}")
        base, other = str(self.base_model_dir), str(self.roleplayer_dir)
        return Spot(base, other, self.log_dir, cores, threads)


async def start_crew(plan: CrewPlan, say: Callable[[str], None]) -> Crew:
    """Starts every actor, side by side. On failure all are ended before the error is raised."""
    crew = Crew(carrier=plan.cluster or SameFiles())
    posts = _posts(plan, crew)
    try:
        await _hire_all([post for post in posts if post.role != WORKER])
        await _hire_all([post for post in posts if post.role == WORKER])
        await _start_all(crew, say)
    except BaseException:
        await stop_crew(crew)
        raise
    crew.keeper = Keeper(
        posts,
        HeldWeights(str(plan.base_model_dir)),
        plan.config.schedule.max_restarts,
        ray.kill,
        say,
        partial(_introduce, crew),
        crew.carrier,
    )
    crew.keeper.watch()
    return crew


async def _hire_all(posts: Sequence[Post]) -> None:
    """Fills posts with actors that are not started, side by side. Raises the first error."""
    hired = await asyncio.gather(*(post.hired() for post in posts), return_exceptions=True)
    for post, actors in zip(posts, hired, strict=True):
        if not isinstance(actors, BaseException):
            post.places.extend(actors)
    for actors in hired:
        if isinstance(actors, BaseException):
            raise actors


def _posts(plan: CrewPlan, crew: Crew) -> list[Post]:
    """Who is wanted: everybody whom the keeper replaces."""
    posts = []
    for role, places, shares in (
        ("questioner", crew.questioners, plan.placement.questioner_cores),
        ("roleplayer", crew.roleplayers, plan.placement.roleplayer_cores),
    ):
        for number, cores in enumerate(shares):
            hire = _on_node(
                plan, role, [number], partial(_one, spawn_engine, plan, role, number, cores)
            )
            posts.append(Post(role, places, (number,), hire, _ping, role == "questioner"))
    for number in range(plan.config.scorer.num_scorers if plan.scoring else 0):
        hire = _on_node(plan, "scorer", [number], partial(_one, _spawn_scorer, plan, number))
        posts.append(Post("scorer", crew.scorers, (number,), hire, _stats))
    if plan.training:
        ranks = range(plan.config.trainer.num_ranks)
        hire = _on_node(plan, "trainer", ranks, partial(_spawn_trainers, plan, ranks))
        posts.append(Post("trainer", crew.trainers, ranks, hire, _progress))
    if plan.worker is not None:  # last: they are given the engines
        for number in range(plan.config.rollout.num_workers):
            options = plan.cluster.driver_options if plan.cluster is not None else {}
            hire = partial(_one, spawn_worker, plan.worker, number, crew, options)
            posts.append(Post(WORKER, crew.workers, (number,), hire, _stats))
    return posts


async def _introduce(crew: Crew, post: Post) -> None:
    """Tells dialogue workers which engines stand where: they hold handles of their own."""
    engines = {"questioner": crew.questioners, "roleplayer": crew.roleplayers}
    if post.role in engines:
        news = [(post.role, number, post.places[number]) for number in post.numbers]
        workers = crew.workers
    elif post.role == WORKER:  # while it started, engines may have been replaced
        news = [(role, n, e) for role, present in engines.items() for n, e in enumerate(present)]
        workers = post.actors
    else:
        return
    for worker in list(workers):
        with contextlib.suppress(ActorDied):  # the next one there is told when it has started
            await asyncio.gather(*(remote(worker.meet.remote(*one)) for one in news))


def _on_node(plan: CrewPlan, role: str, numbers: Sequence[int], spawn: Callable[[], Any]) -> Hire:
    """`spawn`, on a cluster only after the actors' nodes were made ready."""
    if plan.cluster is None:
        return spawn
    return partial(plan.cluster.hire, [f"{role}-{number}" for number in numbers], spawn)


def _one(spawn: Callable[..., Any], *arguments: Any) -> list[Any]:
    return [spawn(*arguments)]


def _ping(actor: Any) -> Awaitable[object]:
    call: Awaitable[object] = actor.ping.remote()
    return call


def _stats(actor: Any) -> Awaitable[object]:
    call: Awaitable[object] = actor.stats.remote()
    return call


def _progress(actor: Any) -> Awaitable[object]:
    call: Awaitable[object] = actor.progress.remote()
    return call


async def stop_crew(crew: Crew) -> None:
    """Ends every actor: asks it to shut down, then kills what has not ended in time."""
    if crew.keeper is not None:
        await crew.keeper.close()
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
            (WORKER, crew.workers),
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


def spawn_engine(plan: CrewPlan, role: str, number: int, cores: str | None) -> Any:
    """The actor of one engine, which is not started yet."""
    config = plan.config
    settings = config.questioner.engine if role == "questioner" else config.roleplayer.engine
    spot = plan.spot(role, number, cores, threads=1)
    spec = EngineSpec(
        role=role,
        model_dir=spot.base_model_dir if role == "questioner" else spot.roleplayer_dir,
        config=settings,
        seed=derive_seed(config.seed, role, number),
        device=plan.placement.device,
        cpu_cores=spot.cores,
        trust_remote_code=config.trust_remote_code,
        log_file=str(spot.log_dir / f"{role}-{number}.log"),
    )
    num_gpus = settings.tensor_parallel_size if plan.placement.device == "cuda" else 0
    environment = engine_environment(spec)
    return actor_class(plan.engine_class, num_gpus, environment, spot.options).remote(spec)


def spawn_worker(
    spec: WorkerSpec, number: int, crew: Crew, options: Mapping[str, Any] | None = None
) -> Any:
    """The actor of one dialogue worker, which is not started yet. The crew's engines must be
    there.
    """
    # One thread: workers share the cores among themselves, and with the engines on a small machine.
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    actor = actor_class(DialogueWorker, 0, one_thread, options)
    return actor.remote(spec, number, crew.questioners, crew.roleplayers)


def _spawn_scorer(plan: CrewPlan, number: int) -> Any:
    config, placement = plan.config.scorer, plan.placement
    spot = plan.spot("scorer", number, None, placement.scorer_threads)
    spec = ScorerSpec(
        model_dir=spot.base_model_dir,
        config=config,
        num_threads=spot.threads,
        device=placement.device if config.num_gpus or placement.device == "cpu" else "cpu",
        log_file=str(spot.log_dir / f"scorer-{number}.log"),
        trust_remote_code=plan.config.trust_remote_code,
    )
    threads = {"OMP_NUM_THREADS": str(spot.threads)}
    return actor_class(Scorer, config.num_gpus, threads, spot.options).remote(spec)


def _spawn_trainers(plan: CrewPlan, ranks: Sequence[int]) -> list[Any]:
    # Anew each time: the last port may still be taken.
    meeting = (_LOOPBACK, _free_port()) if plan.cluster is None else plan.cluster.meeting
    return [_spawn_trainer(plan, rank, *meeting) for rank in ranks]


def _spawn_trainer(plan: CrewPlan, rank: int, address: str, port: int) -> Any:
    config, placement = plan.config.trainer, plan.placement
    spot = plan.spot("trainer", rank, None, placement.trainer_threads)
    spec = TrainerSpec(
        base_model_dir=spot.base_model_dir,
        config=config,
        rank=rank,
        world_size=config.num_ranks,
        master_addr=address,
        master_port=port,
        num_threads=spot.threads,
        device=placement.device if config.num_gpus_per_rank or placement.device == "cpu" else "cpu",
        log_file=str(spot.log_dir / f"trainer-{rank}.log"),
        trust_remote_code=plan.config.trust_remote_code,
        seed=derive_seed(plan.config.seed, "trainer"),
    )
    threads = {"OMP_NUM_THREADS": str(spot.threads)}
    return actor_class(TrainerRank, config.num_gpus_per_rank, threads, spot.options).remote(spec)


def actor_class(
    cls: type,
    num_gpus: float,
    environment: dict[str, str],
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A Ray actor class. Cores are shared out by placement.py, so Ray counts none.

    On a cluster it does, as others may be there too: `options` say how many.
    """
    on_cluster = WORKER_ENVIRONMENT if options else {}
    return ray.remote(cls).options(
        max_concurrency=_MAX_CONCURRENCY,
        runtime_env={"env_vars": {**on_cluster, **environment}},
        **{"num_cpus": 0, "num_gpus": num_gpus, **(options or {})},
    )


def _free_port() -> int:
    """A port that was free a moment ago, for the trainer ranks to meet on."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
