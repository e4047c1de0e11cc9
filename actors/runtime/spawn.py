"""Starts Ray and the actors, waits for them aloud, and ends them in order.

    Seats + RunConfig -> ActorGroup: both roles' engines, scorers, trainer ranks, dialogue workers

Ray stays here and in clients.py: actors are plain classes, wrapped by `ray.remote` in this one
place.
"""

import asyncio
import contextlib
import logging
import os
import shlex
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import NOISE, EngineSpec, engine_environment
from stargate.actors.process.fork_server import FORKING_PYTHON, forking_python
from stargate.actors.process.heap import ONE_HEAP, heap_environment
from stargate.actors.process.paths import socket_folder
from stargate.actors.rpc.remote import ActorDied, remote
from stargate.actors.runtime.actor_slots import WORKER, ActorSlot, HeldWeights
from stargate.actors.runtime.cluster import Cluster, Site
from stargate.actors.runtime.dialogue_worker import DialogueWorker, WorkerSpec
from stargate.actors.runtime.discovery import WORKER_ENVIRONMENT, on_node
from stargate.actors.runtime.file_transfer import SameFiles
from stargate.actors.runtime.gpu_sharing import SleepController
from stargate.actors.runtime.supervisor import START_SECONDS, Supervisor
from stargate.actors.scoring.scorer import Scorer, ScorerSpec
from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import Device, RunConfig
from stargate.monitoring.waiting import await_aloud
from stargate.resources.cluster import ENGINES
from stargate.resources.gpu_phases import STARTS, GpuPhases
from stargate.resources.machine import free_port, usable_cores
from stargate.resources.placement import Placement, Seat
from stargate.resources.submission import JOB_VARIABLES
from stargate.seeds import derive_seed

# Requests that one async actor takes at once: more than any run has in flight.
_MAX_CONCURRENCY = 10_000
# Seconds that an actor has to end by itself before it is killed. vLLM takes 7 to end in order, more
# when several end on one core; killed, it leaks shared memory.
_SHUTDOWN_SECONDS = 40.0
# Bytes of Ray's object store on one machine: it carries training examples, nothing large.
_OBJECT_STORE_BYTES = 300_000_000
_LOOPBACK = "127.0.0.1"
# What takes actors long to import. Not Ray: it reads its settings while it is imported.
_IMPORTS = (
    *("vllm.v1.engine.async_llm", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"),
    *("vllm.model_executor.models.llama", "transformers.models.llama.modeling_llama", "deepspeed"),
    *("stargate.actors.scoring.gold_model", "stargate.actors.training.deepspeed_backend"),
)
Places = dict[str, list[Any]]
# How an actor of each role is asked whether it lives.
_CHECKS: Mapping[str, Callable[[Any], Awaitable[object]]] = {
    "questioner": lambda engine: engine.check_health.remote(),
    "roleplayer": lambda engine: engine.check_health.remote(),
    "scorer": lambda scorer: scorer.stats.remote(),
    "trainer": lambda rank: rank.progress.remote(),
    WORKER: lambda worker: worker.stats.remote(),
}


@dataclass
class ActorGroup:
    """All actors of a run."""

    places: Places  # by role, in the order in which they are started one by one
    supervisor: Supervisor
    turns: GpuPhases | None = None  # who has the GPU, where all share one
    leaving: list[Any] = field(default_factory=list)  # engines that end what they have to do

    def all(self) -> list[Any]:
        """Those first that call others."""
        actors = [actor for role in reversed(self.places) for actor in self.places[role]]
        return [*actors, *self.leaving]


@contextlib.contextmanager
def shared_imports(device: Device | None) -> Iterator[Mapping[str, str]]:
    """Imports once for all actors, if all are on this machine's CPUs. Yields ActorPlan.python."""
    if device != "cpu":
        yield {}
        return
    # What is read while vLLM and DeepSpeed are imported.
    environment = {**NOISE, "DS_ACCELERATOR": device}
    with forking_python(_IMPORTS, environment) as script:
        yield {FORKING_PYTHON: script} if script else {}


def start_ray(num_gpus: int) -> None:
    """Starts a Ray of this run's own on loopback. Its logs stay in Ray's session folder."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at nice 15: anything else on the machine would starve the engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nobody takes workers that Ray starts beforehand: each actor has an environment of its own.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Short of memory, Ray would end all actors at once; one at a time can be replaced.
    os.environ.setdefault("RAY_worker_killing_policy_by_group", "true")
    for variable in JOB_VARIABLES:
        os.environ.pop(variable, None)
    ray.init(
        address="local",
        num_cpus=usable_cores(),  # Ray starts a process for each of the machine's, allowed or not
        num_gpus=num_gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address=_LOOPBACK,
        _temp_dir=f"{socket_folder()}/ray",  # as Ray's own default, where that can hold sockets
    )


@dataclass
class ActorPlan:
    """What to start: the run's config, where each actor goes, which models, where logs go.

    `seats` are those of all actors, by name: engines join and leave, and actors move.
    """

    config: RunConfig
    placement: Placement
    base_model_dir: Path
    roleplayer_dir: Path | None  # None: it is an API
    log_dir: Path
    training: bool = True  # False: no trainer is started
    scoring: bool = True  # False: no scorer is started
    engine_class: type[Engine] = Engine  # a benchmark's engine also keeps records
    worker: WorkerSpec | None = None  # None: no dialogue worker is started
    cluster: Cluster | None = None  # None: everybody is on this machine
    python: Mapping[str, str] = field(default_factory=dict)  # FORKING_PYTHON, if there is a server
    seats: dict[str, Seat] = field(init=False)

    def __post_init__(self) -> None:
        self.seats = self.cluster.seats if self.cluster else dict(self.placement.seats)

    def place(self, actor: str) -> tuple[Seat, Site, str]:
        """An actor's seat, the folders there, and its log file there."""
        seat = self.seats[actor]
        if self.cluster is not None:
            site = self.cluster.site(seat.node)
        else:
            voice = None if self.roleplayer_dir is None else str(self.roleplayer_dir)
            site = Site(str(self.base_model_dir), voice, self.log_dir)
        return seat, site, str(site.log_dir / f"{actor}.log")


async def start_actors(plan: ActorPlan, say: Callable[[str], None]) -> ActorGroup:
    """Starts every actor, side by side. On failure all are ended before the error is raised."""
    places: Places = {role: [] for role in _CHECKS}
    slots = _slots(plan, places)
    supervisor = Supervisor(
        slots,
        HeldWeights(str(plan.base_model_dir)),
        plan.config.schedule.max_restarts,
        ray.kill,
        say,
        partial(_introduce, places),
        plan.cluster or SameFiles(),
    )
    group = ActorGroup(places, supervisor)
    try:
        await _hire_all([slot for slot in slots if slot.role != WORKER])
        await _hire_all([slot for slot in slots if slot.role == WORKER])
        if plan.placement.gpu_share:
            controller = SleepController(places, supervisor.weights, supervisor.file_access)
            group.turns = await controller.start(partial(_start, say=say))
            supervisor.room = partial(_room, group.turns)
        else:
            named = {
                f"{role}-{number}": actor
                for role, actors in places.items()
                for number, actor in enumerate(actors)
            }
            await _start(named, say=say)
    except BaseException:
        await stop_actors(group)
        raise
    supervisor.watch()
    return group


def _room(turns: GpuPhases, role: str) -> contextlib.AbstractAsyncContextManager[None]:
    """While one of a role may be started: on a shared GPU not while others use it."""
    return turns.on(*STARTS[role]) if role in STARTS else contextlib.nullcontext()


async def _hire_all(slots: Sequence[ActorSlot]) -> None:
    """Fills slots with actors that are not started, side by side. Raises the first error."""
    hired = await asyncio.gather(*(slot.hire() for slot in slots), return_exceptions=True)
    for slot, actors in zip(slots, hired, strict=True):
        if not isinstance(actors, BaseException):
            slot.places.extend(actors)
    for actors in hired:
        if isinstance(actors, BaseException):
            raise actors


def _slots(plan: ActorPlan, places: Places) -> list[ActorSlot]:
    """Who is wanted: everybody whom the supervisor replaces. Workers last: they get the engines."""
    config = plan.config
    counts = {role: len(plan.placement.of(role)) for role in ENGINES}
    counts["scorer"] = config.scorer.num_scorers if plan.scoring else 0
    counts["trainer"] = int(plan.training)  # one slot for all ranks
    counts[WORKER] = config.rollout.num_workers if plan.worker is not None else 0
    return [
        actor_slot(plan, places, role, number)
        for role, count in counts.items()
        for number in range(count)
    ]


def actor_slot(plan: ActorPlan, places: Places, role: str, number: int) -> ActorSlot:
    """The place of one actor, or of all ranks of the trainer."""
    numbers = range(plan.config.trainer.num_ranks) if role == "trainer" else (number,)
    hire = partial(_hire, plan, places, role, numbers)
    return ActorSlot(role, places[role], numbers, hire, _CHECKS[role])


async def _hire(plan: ActorPlan, places: Places, role: str, numbers: Sequence[int]) -> list[Any]:
    """Actors that are not started; on a cluster only after their nodes were made ready."""
    cluster = plan.cluster
    if role == WORKER:  # beside the driver
        options = cluster.driver_options if cluster is not None else {}
        assert plan.worker is not None
        return [spawn_worker(plan.worker, number, places, options) for number in numbers]
    names = [f"{role}-{number}" for number in numbers]

    async def spawn() -> list[Any]:
        if role == "trainer":  # they meet anew each time: the last port may still be taken
            meeting = await cluster.meet(names) if cluster else (_LOOPBACK, free_port(_LOOPBACK))
            return [_spawn_trainer(plan, rank, *meeting) for rank in numbers]
        if role == "scorer":
            return [_spawn_scorer(plan, number) for number in numbers]
        return [spawn_engine(plan, role, number) for number in numbers]

    return await (spawn() if cluster is None else cluster.hire(names, spawn))


async def _introduce(places: Places, slot: ActorSlot) -> None:
    """Tells dialogue workers which engines there are: they hold handles of their own.

    Returns when engines that are no longer among them owe nothing to any worker.
    """
    roles: tuple[str, ...] = ENGINES
    if slot.role in ENGINES:
        roles, workers = (slot.role,), list(places[WORKER])
    elif slot.role == WORKER:  # while it started, engines may have been replaced
        workers = slot.actors
    else:
        return
    # Every call leaves at once, in the order in which engines came and went.
    calls = [worker.meet.remote(r, list(places[r])) for worker in workers for r in roles]
    for call in asyncio.as_completed([remote(call) for call in calls]):
        with contextlib.suppress(ActorDied):  # the next one there is told when it has started
            await call


async def stop_actors(group: ActorGroup) -> None:
    """Ends every actor, and what brings them back."""
    await group.supervisor.close()
    if group.turns is not None:
        await group.turns.close()
    await end_actors(group.all())


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


async def _start(actors: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Waits for all to start, aloud. The first failure is raised."""
    calls = {name: remote(actor.start.remote()) for name, actor in actors.items()}
    await await_aloud(calls, lambda names: say(f"setup: still waiting for {names}"), START_SECONDS)


def spawn_engine(plan: ActorPlan, role: str, number: int) -> Any:
    """The actor of one engine, which is not started yet."""
    config = plan.config
    seat, site, log_file = plan.place(f"{role}-{number}")
    spec = EngineSpec(
        role=role,
        model_dir=site.model_dir(role),
        config=config.engines[role],
        seed=derive_seed(config.seed, role, number),
        device=seat.device,
        cpu_cores=seat.cores,
        trust_remote_code=config.trust_remote_code,
        log_file=log_file,
        sleeps=plan.placement.gpu_share > 0,
    )
    environment = {**engine_environment(spec), **plan.python}
    return seated_class(plan.engine_class, seat, environment).remote(spec)


def spawn_worker(
    spec: WorkerSpec, number: int, places: Places, options: Mapping[str, Any] | None = None
) -> Any:
    """The actor of one dialogue worker, which is not started yet. The engines must be there."""
    # One thread: workers share the cores among themselves, and with the engines on a small machine.
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    actor = actor_class(DialogueWorker, 0, one_thread, options)
    return actor.remote(spec, number, *(places[role] for role in ENGINES))


def _spawn_scorer(plan: ActorPlan, number: int) -> Any:
    config = plan.config
    seat, site, log_file = plan.place(f"scorer-{number}")
    spec = ScorerSpec(
        model_dir=site.model_dir(seat.role),
        config=config.scorer,
        num_threads=seat.threads,
        device=seat.device,
        log_file=log_file,
        trust_remote_code=config.trust_remote_code,
    )
    return seated_class(Scorer, seat, {**_computing(spec), **plan.python}).remote(spec)


def _spawn_trainer(plan: ActorPlan, rank: int, address: str, port: int) -> Any:
    config = plan.config
    seat, site, log_file = plan.place(f"trainer-{rank}")
    spec = TrainerSpec(
        base_model_dir=site.model_dir(seat.role),
        config=config.trainer,
        rank=rank,
        world_size=config.trainer.num_ranks,
        master_addr=address,
        master_port=port,
        num_threads=seat.threads,
        device=seat.device,
        log_file=log_file,
        trust_remote_code=config.trust_remote_code,
        seed=derive_seed(config.seed, "trainer"),
        objective=config.algorithm.objective,
        objective_settings=config.algorithm.objective_settings,
    )
    return seated_class(TrainerRank, seat, {**_computing(spec), **plan.python}).remote(spec)


def _computing(spec: ScorerSpec | TrainerSpec) -> dict[str, str]:
    """The environment in which an actor's process starts that computes with torch."""
    return {"OMP_NUM_THREADS": str(spec.num_threads), **heap_environment(ONE_HEAP, spec.device)}


def seated_class(cls: type, seat: Seat, environment: dict[str, str]) -> Any:
    """A Ray actor class for an actor's seat; on a cluster its node, where Ray counts cores, too."""
    where = {}
    if seat.node:
        where = {"num_cpus": seat.num_cpus, "scheduling_strategy": on_node(seat.node)}
    return actor_class(cls, seat.num_gpus, environment, where)


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
    runtime_env: dict[str, Any] = {"env_vars": {**on_cluster, **environment}}
    if FORKING_PYTHON in environment:
        runtime_env["py_executable"] = shlex.quote(environment[FORKING_PYTHON])
    return ray.remote(cls).options(
        max_concurrency=_MAX_CONCURRENCY,
        runtime_env=runtime_env,
        **{"num_cpus": 0, "num_gpus": num_gpus, **(options or {})},
    )
