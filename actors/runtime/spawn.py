"""Starts Ray and the actors, waits for them aloud, and ends them in order.

    Placement + RunConfig -> ActorGroup: both roles' engines, scorers, trainer ranks

Ray stays here and in clients.py: actors are plain classes, wrapped by `ray.remote` in this one
place.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec, engine_environment
from stargate.actors.rpc.remote import ActorDied, remote
from stargate.actors.runtime.actor_slots import WORKER, ActorSlot, HeldWeights, Hire
from stargate.actors.runtime.cluster import Cluster
from stargate.actors.runtime.dialogue_worker import DialogueWorker, WorkerSpec
from stargate.actors.runtime.discovery import WORKER_ENVIRONMENT
from stargate.actors.runtime.file_access import FileAccess, SameFiles, Spot
from stargate.actors.runtime.gpu_sharing import SleepController
from stargate.actors.runtime.heap import ONE_HEAP, heap_environment
from stargate.actors.runtime.supervisor import Supervisor
from stargate.actors.scoring.scorer import Scorer, ScorerSpec
from stargate.actors.training.rank import TrainerRank, TrainerSpec
from stargate.config.run import RunConfig
from stargate.resources.gpu_phases import STARTS, GpuPhases
from stargate.resources.machine import free_port
from stargate.resources.placement import Placement
from stargate.resources.submission import JOB_VARIABLES
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
class ActorGroup:
    """All actors of a run."""

    questioners: list[Any] = field(default_factory=list)
    roleplayers: list[Any] = field(default_factory=list)
    scorers: list[Any] = field(default_factory=list)
    trainers: list[Any] = field(default_factory=list)
    workers: list[Any] = field(default_factory=list)
    leaving: list[Any] = field(default_factory=list)  # engines that end what they have to do
    file_access: FileAccess = field(default_factory=SameFiles)
    turns: GpuPhases | None = None  # who has the GPU, where all share one
    supervisor: Supervisor | None = None  # from the moment on that everybody has started

    def by_role(self) -> dict[str, list[Any]]:
        """The lists themselves, in the order in which actors are started one by one."""
        return {
            "questioner": self.questioners,
            "roleplayer": self.roleplayers,
            "scorer": self.scorers,
            "trainer": self.trainers,
            WORKER: self.workers,
        }

    def all(self) -> list[Any]:
        engines = [*self.questioners, *self.roleplayers, *self.leaving]
        return [*self.workers, *engines, *self.scorers, *self.trainers]

    def engines(self, role: str) -> list[Any]:
        """The actors' own list of a role's engines."""
        return self.questioners if role == "questioner" else self.roleplayers


def start_ray(num_gpus: int) -> None:
    """Starts a Ray of this run's own on loopback. Its logs stay in Ray's session folder."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at nice 15: anything else on the machine would starve the engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Short of memory, Ray would end all actors at once; one at a time can be replaced.
    os.environ.setdefault("RAY_worker_killing_policy_by_group", "true")
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
class ActorPlan:
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


async def start_actors(plan: ActorPlan, say: Callable[[str], None]) -> ActorGroup:
    """Starts every actor, side by side. On failure all are ended before the error is raised."""
    actor_group = ActorGroup(file_access=plan.cluster or SameFiles())
    slots = _slots(plan, actor_group)
    try:
        await _hire_all([slot for slot in slots if slot.role != WORKER])
        await _hire_all([slot for slot in slots if slot.role == WORKER])
        sleep_controller = SleepController(actor_group.by_role(), actor_group.file_access)
        if plan.placement.gpu_share:
            actor_group.turns = await sleep_controller.start(partial(_start, say=say))
        else:
            await _start(_named(actor_group), say=say)
    except BaseException:
        await stop_actors(actor_group)
        raise
    actor_group.supervisor = Supervisor(
        slots,
        HeldWeights(str(plan.base_model_dir)),
        plan.config.schedule.max_restarts,
        ray.kill,
        say,
        partial(_introduce, actor_group),
        actor_group.file_access,
    )
    if actor_group.turns is not None:
        held = actor_group.supervisor.weights
        sleep_controller.weights = lambda: held.current
        actor_group.supervisor.room = partial(_room, actor_group.turns)
    actor_group.supervisor.watch()
    return actor_group


def _room(turns: GpuPhases, role: str) -> contextlib.AbstractAsyncContextManager[None]:
    """While one of a role may be started: on a shared GPU not while others use it."""
    return turns.on(*STARTS[role]) if role in STARTS else contextlib.nullcontext()


async def _hire_all(slots: Sequence[ActorSlot]) -> None:
    """Fills slots with actors that are not started, side by side. Raises the first error."""
    hired = await asyncio.gather(*(slot.hired() for slot in slots), return_exceptions=True)
    for slot, actors in zip(slots, hired, strict=True):
        if not isinstance(actors, BaseException):
            slot.places.extend(actors)
    for actors in hired:
        if isinstance(actors, BaseException):
            raise actors


def _slots(plan: ActorPlan, actor_group: ActorGroup) -> list[ActorSlot]:
    """Who is wanted: everybody whom the supervisor replaces."""
    slots = []
    for role, shares in (
        ("questioner", plan.placement.questioner_cores),
        ("roleplayer", plan.placement.roleplayer_cores),
    ):
        slots += [engine_slot(plan, actor_group, role, n, cores) for n, cores in enumerate(shares)]
    for number in range(plan.config.scorer.num_scorers if plan.scoring else 0):
        hire = _on_node(plan, "scorer", [number], partial(_one, _spawn_scorer, plan, number))
        slots.append(ActorSlot("scorer", actor_group.scorers, (number,), hire, _stats))
    if plan.training:
        ranks = range(plan.config.trainer.num_ranks)
        hire = _on_node(plan, "trainer", ranks, partial(_spawn_trainers, plan, ranks))
        slots.append(ActorSlot("trainer", actor_group.trainers, ranks, hire, _progress))
    if plan.worker is not None:  # last: they are given the engines
        for number in range(plan.config.rollout.num_workers):
            options = plan.cluster.driver_options if plan.cluster is not None else {}
            hire = partial(_one, spawn_worker, plan.worker, number, actor_group, options)
            slots.append(ActorSlot(WORKER, actor_group.workers, (number,), hire, _stats))
    return slots


def engine_slot(
    plan: ActorPlan, actor_group: ActorGroup, role: str, number: int, cores: str | None
) -> ActorSlot:
    """The place of one engine."""
    spawn = partial(_one, spawn_engine, plan, role, number, cores)
    hire = _on_node(plan, role, [number], spawn)
    return ActorSlot(role, actor_group.engines(role), (number,), hire, _ping, role == "questioner")


async def _introduce(actor_group: ActorGroup, slot: ActorSlot) -> None:
    """Tells dialogue workers which engines there are: they hold handles of their own.

    Returns when engines that are no longer among them owe nothing to any worker.
    """
    roles: tuple[str, ...] = ("questioner", "roleplayer")
    if slot.role in roles:
        roles, workers = (slot.role,), list(actor_group.workers)
    elif slot.role == WORKER:  # while it started, engines may have been replaced
        workers = slot.actors
    else:
        return
    # Every call leaves at once, in the order in which engines came and went.
    calls = [
        worker.meet.remote(r, list(actor_group.engines(r))) for worker in workers for r in roles
    ]
    for call in asyncio.as_completed([remote(call) for call in calls]):
        with contextlib.suppress(ActorDied):  # the next one there is told when it has started
            await call


def _on_node(plan: ActorPlan, role: str, numbers: Sequence[int], spawn: Callable[[], Any]) -> Hire:
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


async def stop_actors(actor_group: ActorGroup) -> None:
    """Ends every actor, and what brings them back."""
    if actor_group.supervisor is not None:
        await actor_group.supervisor.close()
    if actor_group.turns is not None:
        await actor_group.turns.close()
    await end_actors(actor_group.all())


async def end_actors(actors: Sequence[Any]) -> None:
    """Asks them to shut down, then kills what has not ended in time."""
    calls = [asyncio.ensure_future(_shutdown(actor)) for actor in actors]
    if calls:
        await asyncio.wait(calls, timeout=_SHUTDOWN_SECONDS)
    for actor in actors:
        ray.kill(actor)


async def _shutdown(actor: Any) -> None:
    try:
        await remote(actor.shutdown.remote())
    except Exception as error:  # it is killed right afterwards; the reason still belongs in the log
        logging.getLogger(__name__).warning("an actor did not shut down: %s", error)


def _named(actor_group: ActorGroup) -> dict[str, Any]:
    return {
        f"{role}-{number}": actor
        for role, actors in actor_group.by_role().items()
        for number, actor in enumerate(actors)
    }


async def _start(actors: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Waits for all to start; every 30 s says which are awaited. The first failure is raised."""
    names = {
        asyncio.ensure_future(remote(actor.start.remote())): name for name, actor in actors.items()
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


def spawn_engine(plan: ActorPlan, role: str, number: int, cores: str | None) -> Any:
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
        sleeps=plan.placement.gpu_share > 0,
    )
    whole = settings.tensor_parallel_size if plan.placement.device == "cuda" else 0
    num_gpus = plan.placement.gpu_share or whole
    environment = engine_environment(spec)
    return actor_class(plan.engine_class, num_gpus, environment, spot.options).remote(spec)


def spawn_worker(
    spec: WorkerSpec, number: int, actor_group: ActorGroup, options: Mapping[str, Any] | None = None
) -> Any:
    """The actor of one dialogue worker, which is not started yet. The actors' engines must be
    there.
    """
    # One thread: workers share the cores among themselves, and with the engines on a small machine.
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    actor = actor_class(DialogueWorker, 0, one_thread, options)
    return actor.remote(spec, number, actor_group.questioners, actor_group.roleplayers)


def _spawn_scorer(plan: ActorPlan, number: int) -> Any:
    config, placement = plan.config.scorer, plan.placement
    num_gpus = placement.gpu_share or config.num_gpus
    spot = plan.spot("scorer", number, None, placement.scorer_threads)
    spec = ScorerSpec(
        model_dir=spot.base_model_dir,
        config=config,
        num_threads=spot.threads,
        device=_device(placement, num_gpus),
        log_file=str(spot.log_dir / f"scorer-{number}.log"),
        trust_remote_code=plan.config.trust_remote_code,
    )
    return actor_class(Scorer, num_gpus, _computing(spec), spot.options).remote(spec)


def _device(placement: Placement, num_gpus: float) -> Literal["cpu", "cuda"]:
    """Of an actor that may stay on CPUs in a run on GPUs."""
    return placement.device if num_gpus else "cpu"


def _spawn_trainers(plan: ActorPlan, ranks: Sequence[int]) -> list[Any]:
    # Anew each time: the last port may still be taken.
    meeting = (_LOOPBACK, free_port(_LOOPBACK)) if plan.cluster is None else plan.cluster.meeting
    return [_spawn_trainer(plan, rank, *meeting) for rank in ranks]


def _spawn_trainer(plan: ActorPlan, rank: int, address: str, port: int) -> Any:
    config, placement = plan.config.trainer, plan.placement
    num_gpus = placement.gpu_share or config.num_gpus_per_rank
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
    return actor_class(TrainerRank, num_gpus, _computing(spec), spot.options).remote(spec)


def _computing(spec: ScorerSpec | TrainerSpec) -> dict[str, str]:
    """The environment in which an actor's process starts that computes with torch."""
    return {"OMP_NUM_THREADS": str(spec.num_threads), **heap_environment(ONE_HEAP, spec.device)}


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
