"""Which actor of a run goes to which node of a cluster. Pure: plain numbers in, plain numbers out.

    RunConfig, nodes (GPUs, CPUs, memory of each) -> needs of every actor -> bundles,
                                 or one line that says what is missing and which key to lower

All is decided before anything starts. An actor lies on one node as a whole: an engine's
tensor-parallel workers and their GPUs, too. `packed` fills nodes up, so that others stay free for
someone else; `spread` gives actors to the emptiest node, so that a lost node takes few with it.
Where the preferred order leads nowhere it is given up rather than the run: a placement is found
whenever there is one (the search stops after `_MAX_STATES` and then says so).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stargate.config.run import EngineConfig, RunConfig
from stargate.errors import ConfigError, MachineError
from stargate.resources.colocation import gpu_share, is_colocated, require_gpu

Strategy = Literal["packed", "spread", "colocated"]
# States that the search looks at before it gives up: a second or so. Actors of one role are alike,
# so that real clusters take as many states as they have actors.
_MAX_STATES = 20_000
# Shares of GPUs are counted in these parts, as Ray does: sums of 0.1 must come out even.
_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has for this run. `memory_gb` is GiB."""

    name: str
    num_gpus: int
    num_cpus: float
    memory_gb: float


@dataclass(frozen=True, slots=True)
class Need:
    """What one actor takes, and the config keys that say how much and how many."""

    role: str
    number: int
    num_gpus: float
    num_cpus: float
    memory_gb: float
    size_key: str  # GPUs of one
    count_key: str

    @property
    def name(self) -> str:
        return f"{self.role}-{self.number}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """One actor's share of a node. Worked example: ("questioner-0", "node-a", 2.0, 2.0, 0.0)."""

    actor: str
    node: str
    num_gpus: float
    num_cpus: float
    memory_gb: float


def needs(
    config: RunConfig,
    *,
    device: Literal["cpu", "cuda"],
    training: bool = True,
    memory_gb: Mapping[str, float] | None = None,
) -> list[Need]:
    """What every actor takes. `memory_gb`: GiB of one actor per role, where it is known.

    On "cpu" without overlap the scorers and trainers take turns with the engines on the same cores
    (placement.py), so that only engines count cores.
    """
    require_gpu(config, device)
    memory = memory_gb or {}
    scorer, trainer = config.scorer, config.trainer
    share = gpu_share(config, training=training) if is_colocated(config) else None
    turns = device == "cpu" and config.schedule.overlap != "always"
    found = [
        *_engines("questioner", config.questioner.engine, device, memory, share),
        *_engines("roleplayer", config.roleplayer.engine, device, memory, share),
    ]
    others = [
        ("scorer", scorer.num_scorers, scorer.num_gpus, scorer.num_threads, "num_scorers"),
        ("trainer", trainer.num_ranks, trainer.num_gpus_per_rank, trainer.num_threads, "num_ranks"),
    ]
    size_keys = {"scorer": "scorer.num_gpus", "trainer": "trainer.num_gpus_per_rank"}
    for role, count, gpus, threads, count_key in others:
        if role == "trainer" and not training:
            continue
        if gpus > 1 and gpus != int(gpus):
            raise ConfigError(f"{size_keys[role]} must be whole above 1, got {gpus:g}")
        gpus = gpus if share is None else share
        found += [
            Need(
                role=role,
                number=number,
                num_gpus=gpus if device == "cuda" else 0.0,
                num_cpus=0.0 if turns else float(threads or 1),
                memory_gb=memory.get(role, 0.0),
                size_key=size_keys[role],
                count_key=f"{role}.{count_key}",
            )
            for number in range(count)
        ]
    return found


def _engines(
    role: str,
    engine: EngineConfig,
    device: str,
    memory: Mapping[str, float],
    share: float | None = None,
) -> list[Need]:
    """`share`: of the one GPU that all have together; None: each has whole ones."""
    gpus = engine.tensor_parallel_size if device == "cuda" else 0
    return [
        Need(
            role=role,
            number=number,
            num_gpus=float(gpus) if share is None else share,
            # Each tensor-parallel worker is a process that keeps a core busy.
            num_cpus=float(max(1, gpus)),
            memory_gb=memory.get(role, 0.0),
            size_key=f"{role}.engine.tensor_parallel_size",
            count_key=f"{role}.engine.num_engines",
        )
        for number in range(engine.num_engines)
    ]


def cluster_device(config: RunConfig, nodes: Sequence[Node]) -> Literal["cpu", "cuda"]:
    """The device of a run on these nodes. Raises MachineError."""
    if not nodes:
        raise MachineError("the cluster has no nodes")
    num_gpus = sum(node.num_gpus for node in nodes)
    if config.device == "cuda" and num_gpus == 0:
        raise MachineError("device is 'cuda', but the cluster has no GPU: set device=cpu")
    if config.device == "auto":
        return "cuda" if num_gpus else "cpu"
    return config.device


def place_on_cluster(
    config: RunConfig,
    nodes: Sequence[Node],
    strategy: Strategy = "packed",
    *,
    training: bool = True,
    memory_gb: Mapping[str, float] | None = None,
) -> tuple[Bundle, ...]:
    """A bundle for every actor: Questioners, Roleplayers, scorers, trainer ranks, in this order.

    Raises MachineError with what is missing and the key to lower, before anything has started.
    """
    device = cluster_device(config, nodes)
    actors = needs(config, device=device, training=training, memory_gb=memory_gb)
    return place_needs(actors, nodes, strategy)


def place_needs(
    actors: Sequence[Need], nodes: Sequence[Node], strategy: Strategy = "packed"
) -> tuple[Bundle, ...]:
    """A bundle for each of these actors, in their order. Raises MachineError."""
    if not nodes:
        raise MachineError("the cluster has no nodes")
    if strategy == "colocated":
        nodes = [_node_for_all(actors, nodes)]
    _check_each_fits(actors, nodes)
    _check_sums(actors, nodes)
    # The large ones first: small ones still fit into what they leave.
    order = sorted(actors, key=lambda need: (-need.num_gpus, -need.num_cpus, -need.memory_gb))
    chosen = _Search(order, nodes, strategy).run()
    if chosen is None:
        largest = order[0]
        raise MachineError(
            f"the cluster has enough in sum but not on the right nodes: {largest.name} and the "
            f"others can't share {_listed(nodes)}; lower {largest.size_key} or {largest.count_key}"
        )
    where = dict(zip((need.name for need in order), chosen, strict=True))
    return tuple(
        Bundle(need.name, where[need.name], need.num_gpus, need.num_cpus, need.memory_gb)
        for need in actors
    )


def _node_for_all(actors: Sequence[Need], nodes: Sequence[Node]) -> Node:
    """The smallest node on one GPU of which all actors find room. Raises MachineError."""
    cpus = math.fsum(need.num_cpus for need in actors)
    memory = math.fsum(need.memory_gb for need in actors)
    large = [n for n in nodes if n.num_gpus and n.num_cpus >= cpus and n.memory_gb >= memory]
    if not large:
        raise MachineError(
            f"cluster.strategy is 'colocated': all actors go to one node with a GPU and {cpus:g} "
            f"CPUs, there is none: {_listed(nodes)}"
        )
    return min(large, key=lambda node: (node.num_gpus, node.num_cpus, node.name))


def _check_each_fits(actors: Sequence[Need], nodes: Sequence[Node]) -> None:
    """Every actor must fit on some node that is empty."""
    for need in actors:
        if any(_Free.of(node).take(need) is not None for node in nodes):
            continue
        gpus = max(node.num_gpus for node in nodes)
        if need.num_gpus > gpus:
            raise MachineError(
                f"{need.size_key}={need.num_gpus:g}, the largest node has {_count(gpus, 'GPU')}"
            )
        raise MachineError(
            f"{need.name} needs {need.num_gpus:g} GPUs, {need.num_cpus:g} CPUs and "
            f"{need.memory_gb:g} GiB on one node; no node has that: {_listed(nodes)}"
        )


def _check_sums(actors: Sequence[Need], nodes: Sequence[Node]) -> None:
    """All actors together must not take more than there is."""
    for what, unit in (("num_gpus", "GPUs"), ("num_cpus", "CPUs"), ("memory_gb", "GiB")):
        needed = math.fsum(getattr(need, what) for need in actors)
        there = math.fsum(getattr(node, what) for node in nodes)
        if needed > there + 1 / _PARTS:
            key = _key_to_lower(actors, what)
            advice = f"lower {key}" if key else "no count can be lowered, it must be larger"
            raise MachineError(f"needs {needed:g} {unit}, the cluster has {there:g}: {advice}")


def _key_to_lower(actors: Sequence[Need], what: str) -> str | None:
    """The count of the role that takes most; where there is but one of each, its size, if any."""
    totals: dict[str, float] = {}
    for need in actors:
        key = need.size_key
        alone = not any(other.role == need.role and other.number for other in actors)
        if alone and need.num_gpus <= 1 and need.role in ("questioner", "roleplayer"):
            continue  # one engine of one process
        if any(other.role == need.role and other.number for other in actors):
            key = need.count_key
        totals[key] = totals.get(key, 0.0) + getattr(need, what)
    counts = {key: total for key, total in totals.items() if total and not _is_size(key, actors)}
    candidates = counts or {key: total for key, total in totals.items() if total}
    return max(candidates, key=lambda key: candidates[key], default=None)


def _is_size(key: str, actors: Sequence[Need]) -> bool:
    return any(need.size_key == key for need in actors)


@dataclass(frozen=True, slots=True)
class _Free:
    """What is left of a node: parts (of _PARTS) of each GPU in ascending order, cores, GiB.

    `num_actors` lie there already: nodes that are left alike need not be equally good.
    """

    gpus: tuple[int, ...]
    cpus: float
    memory: float
    num_actors: int = 0

    @classmethod
    def of(cls, node: Node) -> "_Free":
        return cls((_PARTS,) * node.num_gpus, node.num_cpus, node.memory_gb)

    def take(self, need: Need) -> "_Free | None":
        """What is left after one actor; None if it does not fit.

        A share of a GPU must lie on one GPU: the fullest that has room. Whole GPUs must be unused.
        """
        cpus, memory = round(self.cpus - need.num_cpus, 6), round(self.memory - need.memory_gb, 6)
        if cpus < 0 or memory < 0:
            return None
        parts = round(need.num_gpus * _PARTS)
        gpus = list(self.gpus)
        for _ in range(max(1, parts // _PARTS) if parts else 0):
            share = min(parts, _PARTS)
            room = [free for free in gpus if free >= share]
            if not room:
                return None
            gpus.remove(min(room))
            gpus.append(min(room) - share)
        return _Free(tuple(sorted(gpus)), cpus, memory, self.num_actors + 1)


class _Search:
    """Depth-first: each actor tries the nodes in the strategy's order, and goes back if stuck."""

    def __init__(self, order: Sequence[Need], nodes: Sequence[Node], strategy: Strategy) -> None:
        self._order, self._nodes, self._strategy = order, nodes, strategy
        # (actors placed, what is left of the nodes regardless of their order) that led nowhere.
        self._dead: set[tuple[int, tuple[tuple[tuple[int, ...], float, float], ...]]] = set()

    def run(self) -> list[str] | None:
        """The node of each actor in order, or None if there is no way."""
        free = [_Free.of(node) for node in self._nodes]
        left: list[list[_Free]] = [free]
        choices = [iter(self._candidates(0, free))]
        chosen: list[int] = []
        while True:
            depth = len(chosen)
            if depth == len(self._order):
                return [self._nodes[index].name for index in chosen]
            index = next(choices[-1], None)
            if index is None:
                self._remember(depth, left[-1])
                choices.pop()
                left.pop()
                if not chosen:
                    return None
                chosen.pop()
                continue
            after = left[-1][index].take(self._order[depth])
            assert after is not None  # it is a candidate
            state = [*left[-1][:index], after, *left[-1][index + 1 :]]
            if self._key(depth + 1, state) in self._dead:
                continue
            chosen.append(index)
            left.append(state)
            choices.append(iter(self._candidates(depth + 1, state)))

    def _remember(self, depth: int, state: list[_Free]) -> None:
        self._dead.add(self._key(depth, state))
        if len(self._dead) > _MAX_STATES:
            raise MachineError(
                f"no placement found in {_MAX_STATES} tries on {_listed(self._nodes)}: use fewer "
                "kinds of nodes, or lower tensor_parallel_size"
            )

    @staticmethod
    def _key(
        depth: int, state: list[_Free]
    ) -> tuple[int, tuple[tuple[tuple[int, ...], float, float], ...]]:
        return depth, tuple(sorted((free.gpus, free.cpus, free.memory) for free in state))

    def _candidates(self, depth: int, state: list[_Free]) -> list[int]:
        """Nodes that the next actor fits on, best first; of nodes that are alike only one."""
        if depth == len(self._order):
            return []
        need = self._order[depth]
        alike: dict[_Free, int] = {}
        for index, free in enumerate(state):
            if free not in alike and free.take(need) is not None:
                alike[free] = index
        sign = -1 if self._strategy == "spread" else 1
        return sorted(
            alike.values(),
            key=lambda index: (
                sign * sum(state[index].gpus),
                sign * state[index].cpus,
                # Before memory, which no two nodes have exactly alike.
                -sign * state[index].num_actors,
                sign * state[index].memory,
            ),
        )


def _listed(nodes: Sequence[Node]) -> str:
    """ "3 nodes (2 x 4 GPUs, 8 CPUs, 64 GiB; 1 x 0 GPUs, ...)"."""
    kinds: dict[tuple[int, float, float], int] = {}
    for node in nodes:
        kind = (node.num_gpus, node.num_cpus, node.memory_gb)
        kinds[kind] = kinds.get(kind, 0) + 1
    listed = "; ".join(
        f"{count} x {_count(gpus, 'GPU')}, {cpus:g} CPUs, {memory:g} GiB"
        for (gpus, cpus, memory), count in kinds.items()
    )
    return f"{_count(len(nodes), 'node')} ({listed})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
