"""What a run would do, said before anything starts: placement, memory, time. Needs no GPU.

RunConfig, this machine's GPUs or `--assume-gpus 8x80` -> lines for the screen, and whether it fits
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stargate.config.roleplayer import ApiRoleplayerConfig
from stargate.config.run import RunConfig
from stargate.data.dataset import load_dataset
from stargate.data.held_out import training_pairs
from stargate.errors import ConfigError, ModelError
from stargate.resources.cluster import Node, nodes_for
from stargate.resources.machine import GIB, core_numbers, describe_machine, memory
from stargate.resources.memory import cache_token_bytes
from stargate.resources.model_shape import ModelShape, find_shape
from stargate.resources.placement import Placement, own_machine, place, seat
from stargate.resources.run_plan import (
    PlannedProcess,
    Shapes,
    on_cpus,
    plan_problems,
    plan_processes,
)
from stargate.resources.time_estimate import TimeEstimate, estimate_time

_GPUS = re.compile(r"(\d+)x(\d+(?:\.\d+)?)")
# Cores of a pretended node for each GPU of it.
_CORES_PER_GPU = 16
_COLUMNS = (
    *("weights", "gradients", "masters", "moments", "activations"),
    *("logits", "KV cache", "buffers", "process"),
)


@dataclass(frozen=True)
class Hardware:
    """What the run would have: nodes, GiB of each GPU, GiB of a machine's own memory."""

    nodes: tuple[Node, ...]
    gpu_gib: float
    memory_gib: float
    label: str


def hardware(assumed: str | None) -> Hardware:
    """This machine, or the one that is assumed. Raises ConfigError for what is no COUNTxGIB."""
    if assumed is None:
        machine, cores = describe_machine(), core_numbers()
        sizes = [gpu.memory_gb for gpu in machine.gpus]
        node = own_machine(cores, len(sizes))
        label = f"{len(sizes)} GPUs of {min(sizes):.0f} GiB" if sizes else f"{len(cores)} cores"
        gpu_gib = min(sizes, default=0.0)
        return Hardware((node,), gpu_gib, machine.memory_total_gb, f"this machine, {label}")
    found = [_GPUS.fullmatch(part) for part in assumed.split(",")]
    nodes, sizes = [], []
    for number, match in enumerate(found):
        if match is None or not int(match[1]):
            raise ConfigError(f"--assume-gpus: expected COUNTxGIB such as 8x80, got {assumed!r}")
        count, cores = int(match[1]), tuple(range(_CORES_PER_GPU * int(match[1])))
        name = f"node {number}" if len(found) > 1 else ""
        nodes.append(Node(name, count, len(cores), name, machine=name, cores=cores))
        sizes.append(float(match[2]))
    total, _ = memory()
    return Hardware(tuple(nodes), min(sizes), total, f"{assumed} GiB, assumed")


def find_shapes(config: RunConfig, notes: list[str]) -> dict[str, ModelShape | None]:
    """The shape of each role's model; what is not known is noted."""
    names = {"questioner": config.model, "scorer": config.model, "trainer": config.model}
    if not isinstance(config.roleplayer, ApiRoleplayerConfig):
        names["roleplayer"] = config.roleplayer.model
    shapes = {}
    for name in dict.fromkeys(names.values()):
        try:
            shapes[name] = find_shape(name)
        except ModelError as error:
            shapes[name] = None
            notes.append(f"not known: {error}")
            continue
        if shapes[name] is None:
            notes.append(
                f"not known: the size of {name}: it is no folder here, was never downloaded, and "
                "is none of the models whose shapes are known; download it, or name its folder"
            )
    return {role: shapes[name] for role, name in names.items()}


def show_plan(config: RunConfig, assumed: str | None) -> bool:
    """Prints the plan; whether all that is known of it fits. Raises StargateError."""
    lines, fits = plan_lines(config, assumed)
    print("\n".join(lines))
    return fits


def plan_lines(config: RunConfig, assumed: str | None) -> tuple[list[str], bool]:
    """The plan for the screen, and whether all that is known of it fits."""
    has, notes = hardware(assumed), list[str]()
    shapes = find_shapes(config, notes)
    placement = _place(config, has)
    sizes = {"gpu_gib": has.gpu_gib, "memory_gib": has.memory_gib}
    processes = plan_processes(config, placement, shapes, **sizes)
    pairs = _count_pairs(config)
    problems = list(plan_problems(config, processes, shapes))
    lines = [
        f"{config.name} on {has.label}: a plan, nothing is started",
        "",
        *_stages(config, pairs, shapes),
        placement.schedule,
        *notes,
        *on_cpus(placement),
        "",
        *_table(processes, len(has.nodes) > 1),
        *_caches(config, processes, shapes),
        "",
        *_times(config, _estimate(config, placement, shapes, pairs, has)),
        "",
        *(f"does not fit: {problem}" for problem in problems),
        *([] if problems else ["every process fits" if not notes else "what is known fits"]),
    ]
    return lines, not problems


def _place(config: RunConfig, has: Hardware) -> Placement:
    if len(has.nodes) == 1:
        (node,) = has.nodes
        gpu_gib = has.gpu_gib or None
        return place(config, node.cores, node.num_gpus, gpu_gib=gpu_gib)
    assigned = nodes_for(config, has.nodes)
    used = [node for node in has.nodes if node.name in assigned.values()]
    return seat(config, assigned, used)


@dataclass(frozen=True)
class PairCounts:
    """Pairs of each split that iterations train on, and of the test split."""

    train: list[int]
    test: int


def _count_pairs(config: RunConfig) -> PairCounts:
    data, dataset = config.data, load_dataset(config.data)
    train = [len(training_pairs(dataset, config, split)) for split in data.train_splits]
    return PairCounts(train, len(dataset.pairs(data.test_split, data.test)))


def _stages(config: RunConfig, pairs: PairCounts, shapes: Shapes) -> Iterator[str]:
    data, rollout = config.data, config.rollout
    for role, name in (("questioner", config.model), ("roleplayer", config.roleplayer.model)):
        shape = shapes.get(role)
        if shape is not None:
            active = f", {shape.active / 1e9:.1f} of them for a token" if shape.experts else ""
            yield f"{role}: {name}, {shape.parameters / 1e9:.2f} billion parameters{active}"
    turns = ", ".join(map(str, rollout.turns))
    splits = ", ".join(f"{s} {n}" for s, n in zip(data.train_splits, pairs.train, strict=True))
    yield (
        f"{config.schedule.num_iterations} iterations, each: {rollout.num_dialogues} dialogues of "
        f"{turns} turns for each pair (pairs of {splits}), score, respond, train, push"
    )
    if config.evaluation.enabled:
        yield (
            f"evaluation before the first and after each: {config.evaluation.num_dialogues} "
            f"dialogues for each of {pairs.test} test pairs"
        )


def _table(processes: Sequence[PlannedProcess], several: bool) -> Iterator[str]:
    """GiB of each process: the parts of its memory, and what it needs at the worst moment."""
    rows = [["process", "GPU", *_COLUMNS, "needs", "has"]]
    for process in processes:
        where = ",".join(map(str, process.gpus)) or "CPU"
        cells = ["?"] * (len(_COLUMNS) + 1)
        if process.memory is not None:
            parts = process.memory.parts
            cells = [f"{parts[c] / GIB:.1f}" if c in parts else "-" for c in _COLUMNS]
            cells.append(f"{process.needs_gib:.1f}")
        name = f"{process.node}: {process.name}" if several else process.name
        rows.append([name, where, *cells, f"{process.has_gib:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others])
    yield "(GiB; of each GPU. Not all parts are there at once. What an engine leaves is KV cache.)"


def _caches(
    config: RunConfig, processes: Sequence[PlannedProcess], shapes: Shapes
) -> Iterator[str]:
    """How many texts of full length an engine's cache holds."""
    for role, engine in config.engines.items():
        first = next(process for process in processes if process.role == role)
        shape = shapes[role]
        if first.memory is not None and shape is not None:
            held = max(0.0, first.memory.parts["KV cache"])
            tokens = int(held / cache_token_bytes(engine, shape))
            longest = engine.max_model_len
            texts = f"{tokens / longest:.1f} texts of {longest}"
            yield f"{role}: KV cache for {tokens:,} tokens, {texts}"


def _estimate(
    config: RunConfig, placement: Placement, shapes: Shapes, pairs: PairCounts, has: Hardware
) -> TimeEstimate | None:
    return estimate_time(
        config,
        placement,
        shapes,
        gpu_gib=has.gpu_gib,
        train_pairs=sum(pairs.train) / len(pairs.train),
        test_pairs=pairs.test,
    )


def _times(config: RunConfig, estimate: TimeEstimate | None) -> Iterator[str]:
    if estimate is None:
        yield "time: not estimated, as the size of a model is not known"
        return
    yield "time, roughly (from the lengths and speeds of docs/scaling.md, mostly assumed):"
    named = {**estimate.stages, "one evaluation": estimate.evaluation, "the run": estimate.run}
    width = max(map(len, named))
    for stage, (slow, fast) in named.items():
        yield f"  {stage:<{width}}  {_hours(fast)} to {_hours(slow)}"
    if isinstance(config.roleplayer, ApiRoleplayerConfig):
        yield "  without the time that the Roleplayer's API takes"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
