"""Which actor of a run goes to which node of a cluster. Pure: plain numbers in, plain numbers out.

    RunConfig -> needs of every actor; nodes (GPUs, CPUs of each) -> the node of each actor,
                                 or one line that says what is missing and which key to lower

All is decided before anything starts. An actor lies on one node as a whole: an engine's
tensor-parallel workers and their GPUs, too. `packed` fills nodes up, so that others stay free for
someone else; `spread` gives actors to the emptiest node, so that a lost node takes few with it.
Where the preferred order leads nowhere it is given up rather than the run: a placement is found
whenever there is one (the search stops after `_MAX_STATES` and then says so). Ray's placement
groups find fewer, and can't say what is missing: docs/lab-notes.md, "Libraries tried".

On CPUs scorers and trainer ranks take turns with the engines and need no core of their own: scorers
go to nodes that engines use anyway, trainer ranks to one node ("packed") or to all in use.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from stargate.config.run import Device, RunConfig
from stargate.errors import MachineError
from stargate.resources.gpu_phases import (
    GPU_PARTS,
    check_engines,
    gpu_share,
    is_colocated,
    require_gpu,
)

Strategy = Literal["packed", "spread", "colocated"]
ENGINES = ("questioner", "roleplayer")
# States that the search looks at before it gives up: a second or so. Actors of one role are alike,
# so that real clusters take as many states as they have actors.
_MAX_STATES = 20_000


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has for this run, and what it says of itself once it was asked.

    `name` is Ray's id of it, `label` is for the screen. Nodes with the same `machine` and `cores`
    share these (raylets or containers on one machine).
    """

    name: str
    num_gpus: int
    num_cpus: float
    label: str = ""
    address: str = ""
    machine: str = ""
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Need:
    """What one actor takes, and the config keys that say how much and how many."""

    role: str
    number: int
    num_gpus: float
    num_cpus: float
    size_key: str  # GPUs of one
    count_key: str

    @property
    def name(self) -> str:
        return f"{self.role}-{self.number}"


def needs(config: RunConfig, *, device: Device, training: bool = True) -> list[Need]:
    """What every actor takes: Questioners, Roleplayers, scorers, trainer ranks, in this order.

    On "cpu" without overlap the scorers and trainers take turns with the engines on the same cores
    (placement.py), so that only engines count cores. Raises MachineError.
    """
    require_gpu(config, device)
    scorer, trainer = config.scorer, config.trainer
    in_turn = device == "cpu" and config.schedule.overlap != "always"
    share = gpu_share(config, training=training) if is_colocated(config) else None
    roles: list[tuple[str, int, str, float, str, float]] = []
    for role, engine in config.engines.items():
        size = engine.tensor_parallel_size
        # Each tensor-parallel worker is a process that keeps a core busy.
        cpus = float(size if device == "cuda" else 1)
        keys = "engine.num_engines", "engine.tensor_parallel_size"
        roles.append((role, engine.num_engines, keys[0], size, keys[1], cpus))
    cpus = 0.0 if in_turn else float(scorer.num_threads or 1)
    gpus = 1.0 if scorer.num_gpus is None else scorer.num_gpus
    roles.append(("scorer", scorer.num_scorers, "num_scorers", gpus, "num_gpus", cpus))
    if training:
        cpus = 0.0 if in_turn else float(trainer.num_threads or 1)
        keys = "num_ranks", "num_gpus_per_rank"
        gpus = 1.0 if trainer.num_gpus_per_rank is None else trainer.num_gpus_per_rank
        roles.append(("trainer", trainer.num_ranks, keys[0], gpus, keys[1], cpus))
    found = []
    for role, count, count_key, gpus, size_key, cpus in roles:
        gpus = 0.0 if device == "cpu" else float(gpus) if share is None else share
        sizes = f"{role}.{size_key}", f"{role}.{count_key}"
        found += [Need(role, number, gpus, cpus, *sizes) for number in range(count)]
    return found


def cluster_device(config: RunConfig, nodes: Sequence[Node]) -> Device:
    """The device of a run on these nodes. Raises MachineError."""
    if not nodes:
        raise MachineError("the cluster has no nodes")
    return device_of(config, sum(node.num_gpus for node in nodes), "the cluster has no GPU")


def device_of(config: RunConfig, num_gpus: int, lack: str) -> Device:
    """The device of a run where there are so many GPUs. Raises MachineError, which says `lack`."""
    if config.device == "cuda" and num_gpus == 0:
        raise MachineError(f"device is 'cuda', but {lack}: set device=cpu")
    if config.device == "auto":
        return "cuda" if num_gpus else "cpu"
    return config.device


def usable_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Without those that have neither CPUs nor GPUs: by custom, such a head carries no work."""
    return [node for node in nodes if node.num_cpus or node.num_gpus]


def nodes_for(config: RunConfig, nodes: Sequence[Node], *, training: bool = True) -> dict[str, str]:
    """Every actor's node, in the order of `needs`.

    Raises MachineError with what is missing and the key to lower.
    """
    nodes = usable_nodes(nodes)
    device = cluster_device(config, nodes)
    actors = needs(config, device=device, training=training)
    if is_colocated(config):
        check_engines(config, None, training=training)  # Ray does not say how large a GPU is
    found = assign(actors, nodes, config.cluster.strategy)
    used = {found[need.name] for need in actors if need.num_gpus or need.num_cpus}
    in_turn = [need for need in actors if not need.num_gpus and not need.num_cpus]
    spread = config.cluster.strategy == "spread"
    return found | _assign_in_turn(in_turn, [n for n in nodes if n.name in used], spread=spread)


def _assign_in_turn(
    actors: Sequence[Need], nodes: Sequence[Node], *, spread: bool
) -> dict[str, str]:
    """Actors that use cores when the engines don't: those of a role share the nodes out."""
    there: Counter[tuple[str, str]] = Counter()

    def room(node: Node, role: str) -> tuple[float, int]:
        """Cores for each of one more; of equals the node with fewer, in any order of nodes."""
        count = there[role, node.name]
        return node.num_cpus / (1 + count), -count

    found = {}
    for need in actors:
        if need.role == "trainer" and not spread:
            node = max(nodes, key=lambda node: node.num_cpus)
        else:
            node = max(nodes, key=partial(room, role=need.role))
        there[need.role, node.name] += 1
        found[need.name] = node.name
    return found


def assign(
    actors: Sequence[Need], nodes: Sequence[Node], strategy: Strategy = "packed"
) -> dict[str, str]:
    """A node for each of these actors, in their order. Raises MachineError."""
    if not nodes:
        raise MachineError("the cluster has no nodes")
    if strategy == "colocated":
        nodes = [_node_for_all(actors, nodes)]
    _check_each_fits(actors, nodes)
    _check_sums(actors, nodes)
    # The large ones first: small ones still fit into what they leave.
    order = sorted(actors, key=lambda need: (-need.num_gpus, -need.num_cpus))
    rooms = _search(order, nodes, strategy)
    if rooms is None:
        largest = order[0]
        raise MachineError(
            f"the cluster has enough in sum but not on the right nodes: {largest.name} and the "
            f"others can't share {_listed(nodes)}; lower {largest.size_key} or {largest.count_key}"
        )
    where = {actor: room.node for room in rooms for actor in room.actors}
    return {need.name: where[need.name] for need in actors}


def _node_for_all(actors: Sequence[Need], nodes: Sequence[Node]) -> Node:
    """The smallest node on one GPU of which all actors find room. Raises MachineError."""
    cpus = math.fsum(need.num_cpus for need in actors)
    large = [node for node in nodes if node.num_gpus and node.num_cpus >= cpus]
    if not large:
        raise MachineError(
            f"cluster.strategy is 'colocated': all actors go to one node with a GPU and {cpus:g} "
            f"CPUs, there is none: {_listed(nodes)}"
        )
    return min(large, key=lambda node: (node.num_gpus, node.num_cpus, node.name))


def _check_each_fits(actors: Sequence[Need], nodes: Sequence[Node]) -> None:
    """Every actor must fit on some node that is empty."""
    for need in actors:
        if any(_Room.of(node).after(need) is not None for node in nodes):
            continue
        gpus = max(node.num_gpus for node in nodes)
        if need.num_gpus > gpus:
            raise MachineError(
                f"{need.size_key}={need.num_gpus:g}, the largest node has {_count(gpus, 'GPU')}"
            )
        raise MachineError(
            f"{need.name} needs {need.num_gpus:g} GPUs and {need.num_cpus:g} CPUs on one node; "
            f"no node has that: {_listed(nodes)}"
        )


def _check_sums(actors: Sequence[Need], nodes: Sequence[Node]) -> None:
    """All actors together must not take more than there is."""
    for what, unit in (("num_gpus", "GPUs"), ("num_cpus", "CPUs")):
        needed = math.fsum(getattr(need, what) for need in actors)
        there = math.fsum(getattr(node, what) for node in nodes)
        if needed > there + 1 / GPU_PARTS:
            key = _key_to_lower(actors, what)
            advice = f"lower {key}" if key else "no count can be lowered, it must be larger"
            raise MachineError(f"needs {needed:g} {unit}, the cluster has {there:g}: {advice}")


def _key_to_lower(actors: Sequence[Need], what: str) -> str | None:
    """The count of the role that takes most; where there is but one of each, its size, if any."""
    several = {need.role for need in actors if need.number}
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for need in actors:
        if need.role in several:
            counts[need.count_key] += getattr(need, what)
        elif need.num_gpus > 1 or need.role not in ENGINES:  # else one engine of one process
            sizes[need.size_key] += getattr(need, what)
    totals = +counts or +sizes  # what takes something
    return max(totals, key=lambda key: totals[key], default=None)


@dataclass(frozen=True, slots=True)
class _Room:
    """What is left of a node, parts (of GPU_PARTS) of each GPU in ascending order and cores; and
    the actors that lie there already: nodes that are left alike need not be equally good.
    """

    node: str
    gpus: tuple[int, ...]
    cpus: float
    actors: tuple[str, ...] = ()

    @classmethod
    def of(cls, node: Node) -> "_Room":
        return cls(node.name, (GPU_PARTS,) * node.num_gpus, node.num_cpus)

    def after(self, need: Need) -> "_Room | None":
        """What is left after one actor more; None if it does not fit.

        A share of a GPU must lie on one GPU: the fullest that has room. Whole GPUs must be unused.
        """
        cpus = round(self.cpus - need.num_cpus, 6)
        if cpus < 0:
            return None
        parts = round(need.num_gpus * GPU_PARTS)
        gpus = list(self.gpus)
        for _ in range(max(1, parts // GPU_PARTS) if parts else 0):
            share = min(parts, GPU_PARTS)
            room = [free for free in gpus if free >= share]
            if not room:
                return None
            gpus.remove(min(room))
            gpus.append(min(room) - share)
        return _Room(self.node, tuple(sorted(gpus)), cpus, (*self.actors, need.name))


# What is left of all nodes.
_State = tuple[_Room, ...]


def _search(order: Sequence[Need], nodes: Sequence[Node], strategy: Strategy) -> _State | None:
    """Depth-first: each actor tries the nodes in the strategy's order, and goes back if stuck."""
    dead = set()  # what led nowhere: so many actors placed, so much left of some nodes
    path: list[_State] = []
    branches = [iter([tuple(_Room.of(node) for node in nodes)])]
    while branches:
        state = next(branches[-1], None)
        if state is None:
            branches.pop()
            if path:
                dead.add((len(path), _alike(path.pop())))
            if len(dead) > _MAX_STATES:
                raise MachineError(
                    f"no placement found in {_MAX_STATES} tries on {_listed(nodes)}: use fewer "
                    "kinds of nodes, or lower tensor_parallel_size"
                )
        elif len(path) == len(order):
            return state
        elif (len(path) + 1, _alike(state)) not in dead:
            branches.append(_next_states(state, order[len(path)], strategy))
            path.append(state)
    return None


def _alike(state: _State) -> tuple[tuple[tuple[int, ...], float], ...]:
    """The same for two states that differ in the order of their nodes only."""
    return tuple(sorted((room.gpus, room.cpus) for room in state))


def _next_states(state: _State, need: Need, strategy: Strategy) -> Iterator[_State]:
    """The actor on each node that has room, best first; of nodes that are alike only on one."""
    found: dict[tuple[int, float, int, tuple[int, ...]], _State] = {}
    sign = -1 if strategy == "spread" else 1
    for index, room in enumerate(state):
        after = room.after(need)
        if after is not None:
            # Of equally full nodes the one with fewer actors, or with more where they fill it up.
            key = sign * sum(room.gpus), sign * room.cpus, -sign * len(room.actors), room.gpus
            found.setdefault(key, (*state[:index], after, *state[index + 1 :]))
    return (found[key] for key in sorted(found, key=lambda key: key[:3]))


def _listed(nodes: Sequence[Node]) -> str:
    """ "3 nodes (2 x 4 GPUs, 8 CPUs; 1 x 0 GPUs, ...)"."""
    kinds = Counter((node.num_gpus, node.num_cpus) for node in nodes)
    listed = "; ".join(
        f"{count} x {_count(gpus, 'GPU')}, {cpus:g} CPUs" for (gpus, cpus), count in kinds.items()
    )
    return f"{_count(len(nodes), 'node')} ({listed})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
