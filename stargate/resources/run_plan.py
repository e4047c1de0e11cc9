"""Which process of a run is where, what it takes there, and whether it fits. Pure.

RunConfig, Placement, shapes of its models, GiB -> a PlannedProcess each
                                                -> problems: one line each, with a key to change
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from stargate.config.run import Device, LoraConfig, RunConfig
from stargate.errors import MachineError
from stargate.resources.cluster import ENGINES
from stargate.resources.gpu_phases import GpuPhase, engine_share
from stargate.resources.machine import GIB
from stargate.resources.memory import (
    PROCESS_GIB,
    Memory,
    engine_memory,
    scorer_memory,
    trainer_memory,
)
from stargate.resources.model_shape import ModelShape
from stargate.resources.placement import Placement, Seat, role_of

# Role -> its model's shape; None: it is not known.
Shapes = Mapping[str, ModelShape | None]


@dataclass(frozen=True, slots=True)
class PlannedProcess:
    """A process on its node. `gpus` are numbered as they are given out; Ray may number otherwise.

    `has_gib` is what one of its GPUs has, or the machine; `memory` None: its model is not known.
    """

    name: str
    node: str
    device: Device
    gpus: tuple[int, ...]
    memory: Memory | None
    has_gib: float

    @property
    def role(self) -> str:
        return role_of(self.name)

    @property
    def needs_gib(self) -> float:
        return 0.0 if self.memory is None else self.memory.needs_gib


def plan_processes(
    config: RunConfig, placement: Placement, shapes: Shapes, *, gpu_gib: float, memory_gib: float
) -> list[PlannedProcess]:
    """Every engine, scorer and trainer rank. `memory_gib` is the machine's own memory."""
    numbers = _gpu_numbers(placement)
    return [
        PlannedProcess(
            name,
            seat.node,
            seat.device,
            numbers[name],
            _memory(config, seat, shapes.get(seat.role), gpu_gib),
            gpu_gib if seat.device == "cuda" else memory_gib,
        )
        for name, seat in placement.seats.items()
    ]


def _gpu_numbers(placement: Placement) -> dict[str, tuple[int, ...]]:
    """GPUs in the order of seats; parts of one are filled up before the next is begun."""
    taken: dict[str, float] = defaultdict(float)
    found: dict[str, tuple[int, ...]] = {}
    for name, seat in placement.seats.items():
        start = taken[seat.node]
        if placement.gpu_share:
            found[name] = (0,)
        elif 0 < seat.num_gpus < 1 and start % 1 + seat.num_gpus <= 1:
            found[name] = (int(start),)
            taken[seat.node] = start + seat.num_gpus
        else:
            first = -int(-start // 1)
            found[name] = tuple(range(first, first - int(-seat.num_gpus // 1)))
            taken[seat.node] = first + seat.num_gpus
    return found


def _memory(
    config: RunConfig, seat: Seat, shape: ModelShape | None, gpu_gib: float
) -> Memory | None:
    if shape is None:
        return None
    if seat.role == "scorer":
        return scorer_memory(config.scorer, shape, seat.device)
    if seat.role == "trainer":
        return trainer_memory(config.trainer, shape, seat.device)
    engine = config.engines[seat.role]
    places = engine.num_places(seat.device)
    return engine_memory(engine, shape, seat.device, num_seqs=places, gpu_gib=gpu_gib)


def on_cpus(placement: Placement) -> list[str]:
    """A line for each part of a run on GPUs that computes on CPUs."""
    keys = {"scorer": "scorer.num_gpus", "trainer": "trainer.num_gpus_per_rank"}
    return [
        f"note: the {role} computes on the CPU in a run on GPUs ({keys[role]} is 0), which takes "
        "hundreds of times as long; null is a GPU of its own"
        for role in keys
        if placement.device == "cuda" and any(seat.device == "cpu" for seat in placement.of(role))
    ]


def check_plan(config: RunConfig, processes: Sequence[PlannedProcess], shapes: Shapes) -> None:
    """Raises MachineError for the first process that can't fit."""
    for problem in plan_problems(config, processes, shapes):
        raise MachineError(problem)


def plan_problems(
    config: RunConfig, processes: Sequence[PlannedProcess], shapes: Shapes
) -> Iterator[str]:
    """One line per process that does not fit: what it needs, what there is, what to change."""
    for process in processes:
        if process.device == "cuda" and process.memory is not None and process.role in ENGINES:
            yield from _engine_problem(config, process)
    if config.cluster.strategy == "colocated":
        yield from _phase_problems(config, processes, shapes)
        return
    sharing: dict[tuple[str, int], list[PlannedProcess]] = defaultdict(list)
    for process in processes:
        for number in process.gpus:
            sharing[process.node, number].append(process)
    for (_, number), there in sharing.items():
        takes = {process.name: _takes_gib(config, process) for process in there}
        most, has = max(there, key=lambda process: takes[process.name]), there[0].has_gib
        total = sum(takes.values())
        if total > has + 1e-6 and not (len(there) == 1 and most.role in ENGINES):
            who = f"{', '.join(takes)} together need" if len(there) > 1 else f"{most.name} needs"
            remedy = _remedy(config, most.role, shapes[most.role], has - total + takes[most.name])
            yield f"{who} {total:.1f} GiB of GPU {number}, which has {has:.1f}: {remedy}"
    cpu = [process for process in processes if process.device == "cpu"]
    total = sum(process.needs_gib for process in cpu)
    if cpu and total > cpu[0].has_gib:
        yield (
            f"{', '.join(process.name for process in cpu)} need {total:.1f} GiB of this machine's "
            f"memory, which has {cpu[0].has_gib:.1f}: lower engine.cpu_kv_cache_gb, "
            "scorer.num_scorers or trainer.micro_batch_size, or take a smaller model"
        )


def _takes_gib(config: RunConfig, process: PlannedProcess) -> float:
    """An engine takes its whole share, whatever it needs."""
    if process.role in ENGINES:
        return config.engines[process.role].gpu_memory_utilization * process.has_gib
    return process.needs_gib


def _engine_problem(config: RunConfig, process: PlannedProcess) -> Iterator[str]:
    engine, share = config.engines[process.role], _takes_gib(config, process)
    if process.needs_gib <= share:
        return
    key = f"{process.role}.engine"
    assert process.memory is not None
    room = process.memory.parts["KV cache"]
    advice = f"lower {key}.max_model_len, now {engine.max_model_len}"
    if room < 0.2 * share * GIB:
        advice = f"raise {key}.tensor_parallel_size, or take a smaller model"
        if config.cluster.strategy == "colocated":
            advice = f"raise {key}.gpu_memory_utilization, or take a smaller model"
    yield (
        f"{process.name} needs {process.needs_gib:.1f} GiB of each of its GPUs for one text of "
        f"{engine.max_model_len} tokens, its share ({key}.gpu_memory_utilization "
        f"{engine.gpu_memory_utilization:g}) of {process.has_gib:.1f} is {share:.1f}: {advice}"
    )


def _phase_problems(
    config: RunConfig, processes: Sequence[PlannedProcess], shapes: Shapes
) -> Iterator[str]:
    for phase, gib in phase_memory(config, processes).items():
        has = processes[0].has_gib
        if gib <= has + 1e-6:
            continue
        role = {GpuPhase.SCORE: "scorer", GpuPhase.TRAIN: "trainer"}.get(phase)
        remedy = "lower questioner.engine.gpu_memory_utilization"
        if role is not None:
            of_role = sum(p.needs_gib for p in processes if p.role == role)
            remedy = _remedy(config, role, shapes[role], has - gib + of_role)
        yield (
            f"cluster.strategy is 'colocated': the {phase} phase needs {gib:.1f} GiB of the GPU, "
            f"it has {has:.1f}: {remedy}"
        )


def phase_memory(config: RunConfig, processes: Sequence[PlannedProcess]) -> dict[GpuPhase, float]:
    """GiB that each phase takes of the GPU that all share: who sleeps keeps CUDA's context."""
    gpu_gib = processes[0].has_gib
    found: dict[GpuPhase, float] = {}
    for phase, roles in (
        (GpuPhase.PLAY, ENGINES),
        (GpuPhase.SCORE, ("scorer",)),
        (GpuPhase.TRAIN, ("trainer",)),
    ):
        awake = [process for process in processes if process.role in roles]
        asleep = (len(processes) - len(awake)) * PROCESS_GIB
        if phase == GpuPhase.PLAY:
            found[phase] = engine_share(config) * gpu_gib + asleep
        elif awake:
            found[phase] = sum(process.needs_gib for process in awake) + asleep
    return found


def _remedy(config: RunConfig, role: str, shape: ModelShape | None, has_gib: float) -> str:
    """The mildest change after which the role fits into so much."""
    if role == "scorer" and shape is not None:
        lower = config.scorer.model_copy(update={"max_batch_tokens": 1024})
        if scorer_memory(lower, shape, "cuda").needs_gib <= has_gib:
            return "lower scorer.max_batch_tokens"
        return "lower scorer.num_scorers, or take a smaller model: a scorer has it whole"
    if role == "trainer" and shape is not None:
        return _trainer_remedy(config, shape, has_gib)
    return f"lower {role}.engine.gpu_memory_utilization"


def _trainer_remedy(config: RunConfig, shape: ModelShape, has_gib: float) -> str:
    """The fewest changes after which it fits, preferably those that change no result."""
    trainer = config.trainer
    steps: list[dict[str, object]] = [{"activation_checkpointing": True}]
    steps.append({"micro_batch_size": 1, "row_tokens": None})
    if trainer.num_ranks > 1:
        steps.append({"zero_stage": 3})
    steps.append({"lora": LoraConfig()})
    # One alone, then two together, ...: in this order the mildest come first.
    for count in range(1, len(steps) + 1):
        for chosen in combinations(steps, count):
            changes = {key: value for step in chosen for key, value in step.items()}
            changed = trainer.model_copy(update=changes)
            gib = trainer_memory(changed, shape, "cuda").needs_gib
            if gib <= has_gib:
                words = [_word(key, value) for key, value in changes.items() if value is not None]
                return f"set {' '.join(words)} (then {gib:.1f} GiB)"
    return "raise trainer.num_ranks with trainer.zero_stage=3, or take a smaller model"


def _word(key: str, value: object) -> str:
    """A change as it is written on the command line."""
    return f"trainer.{key}={'{}' if isinstance(value, LoraConfig) else str(value).lower()}"
