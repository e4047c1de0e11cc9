"""Who sits where on a cluster, and on which cores: nodes by cluster.py, what is in them here.

    RunConfig, NodeFacts of all nodes -> place_on_cluster -> a Seat for every actor
                                                          -> Placement (overlap, device) of the run

Pure. On GPUs a seat is its node and its share of GPUs. Without GPUs an actor also gets cores or
threads of its node, by the rules of placement.py applied to each node by itself. Actors that take
turns with the engines (scorers and trainer ranks on CPUs) need no core of their own: scorers go to
nodes that engines use anyway, trainer ranks to one node ("packed") or to all in use ("spread").
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.resources.cluster import Bundle, Need, Node, cluster_device, needs, place_needs
from stargate.resources.colocation import check_engines, is_colocated
from stargate.resources.placement import (
    ONE_GPU,
    Placement,
    core_list,
    cores_for_more,
    decide_overlap,
    listed_cores,
    num_listed,
    split_cores,
)

_ENGINES = ("questioner", "roleplayer")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node and what it says of itself. `node.name` is Ray's id of it, `label` is for the screen.

    Nodes with the same `machine` and `cores` share these (raylets or containers on one machine).
    """

    node: Node
    label: str
    address: str
    machine: str
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an actor lives and what it takes there. `cores`: a core list, None if not pinned."""

    actor: str
    node: str
    num_gpus: float
    num_cpus: float
    cores: str | None
    threads: int

    @property
    def role(self) -> str:
        return self.actor.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Seating:
    """The seats of all actors, and what the run as a whole does."""

    seats: tuple[Seat, ...]
    placement: Placement

    def by_node(self) -> dict[str, list[str]]:
        """Names of the actors on each node that is used."""
        found: dict[str, list[str]] = {}
        for seat in self.seats:
            found.setdefault(seat.node, []).append(seat.actor)
        return found


def usable_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Without those that have neither CPUs nor GPUs: by custom, such a head carries no work."""
    return [node for node in nodes if node.num_cpus or node.num_gpus]


def bundles_for(
    config: RunConfig, nodes: Sequence[Node], *, training: bool = True
) -> tuple[Bundle, ...]:
    """Every actor's node. Raises MachineError with what is missing and the key to lower."""
    nodes = usable_nodes(nodes)
    device = cluster_device(config, nodes)
    actors = needs(config, device=device, training=training)
    strategy = config.cluster.strategy
    if is_colocated(config):
        check_engines(config, None, training=training)  # Ray does not say how large a GPU is
    bundles = {bundle.actor: bundle for bundle in place_needs(actors, nodes, strategy)}
    used = {bundles[need.name].node for need in actors if _takes(need)}
    in_turn = [need for need in actors if not _takes(need)]
    for bundle in _place_in_turn(in_turn, [n for n in nodes if n.name in used], strategy):
        bundles[bundle.actor] = bundle
    return tuple(bundles[need.name] for need in actors)


def _takes(need: Need) -> bool:
    return bool(need.num_gpus or need.num_cpus or need.memory_gb)


def _place_in_turn(actors: Sequence[Need], nodes: Sequence[Node], strategy: str) -> list[Bundle]:
    """Actors that use cores when the engines don't: those of a role share the nodes out."""
    largest = max(nodes, key=lambda node: node.num_cpus) if nodes else None
    counts: dict[tuple[str, str], int] = {}
    placed = []
    for need in actors:
        assert largest is not None  # an engine always takes something
        node = largest
        if need.role != "trainer" or strategy == "spread":
            node = max(nodes, key=lambda n: _room(n, counts.get((need.role, n.name), 0)))
        counts[need.role, node.name] = counts.get((need.role, node.name), 0) + 1
        placed.append(Bundle(need.name, node.name, 0.0, 0.0, 0.0))
    return placed


def _room(node: Node, num_there: int) -> tuple[float, int]:
    """Cores for each of one more; of equals the node with fewer, whatever order nodes come in."""
    return node.num_cpus / (1 + num_there), -num_there


def seat(config: RunConfig, bundles: Sequence[Bundle], facts: Sequence[NodeFacts]) -> Seating:
    """Cores and threads for actors whose nodes are known. Raises MachineError."""
    device = cluster_device(config, [fact.node for fact in facts])
    shares = node_cores(facts)
    seats: list[Seat] = []
    overlaps: list[tuple[bool, str]] = []
    for fact in facts:
        here = [bundle for bundle in bundles if bundle.node == fact.node.name]
        cores = shares[fact.node.name]
        seated = _seat_node(config, here, cores, fact.label, pinned=device == "cpu")
        seats += seated
        engines = [s.threads for s in seated if s.role in _ENGINES]
        scorers = [s.threads for s in seated if s.role == "scorer"]
        if device == "cpu" and engines + scorers:
            overlaps.append(decide_overlap(engines, scorers, len(cores)))
    order = {bundle.actor: number for number, bundle in enumerate(bundles)}
    seats.sort(key=lambda s: order[s.actor])
    overlap, reason = _decide(config, overlaps)

    def of(role: str) -> list[Seat]:
        return [s for s in seats if s.role == role]

    placement = Placement(
        device=device,
        questioner_cores=tuple(s.cores for s in of("questioner")),
        roleplayer_cores=tuple(s.cores for s in of("roleplayer")),
        scorer_threads=min((s.threads for s in of("scorer")), default=1),
        trainer_threads=min((s.threads for s in of("trainer")), default=1),
        overlap=overlap,
        overlap_reason=reason,
        gpu_share=max((s.num_gpus for s in seats), default=0.0) if is_colocated(config) else 0.0,
    )
    return Seating(tuple(seats), placement)


def _decide(config: RunConfig, overlaps: Sequence[tuple[bool, str]]) -> tuple[bool, str]:
    """Whether stages overlap: only if they may on every node."""
    if is_colocated(config):
        return False, ONE_GPU
    if config.schedule.overlap != "auto":
        return config.schedule.overlap == "always", f"schedule.overlap is {config.schedule.overlap}"
    if not overlaps:
        return True, "the engines run on GPUs"
    return next((found for found in overlaps if not found[0]), overlaps[0])


def _seat_node(
    config: RunConfig,
    bundles: Sequence[Bundle],
    cores: Sequence[int],
    label: str,
    *,
    pinned: bool,
) -> list[Seat]:
    """The seats on one node."""
    roles = [bundle.actor.rpartition("-")[0] for bundle in bundles]
    num_engines = sum(role in _ENGINES for role in roles)
    if pinned and num_engines > len(cores):
        raise MachineError(
            f"{num_engines} engines need a core each, node {label} has {len(cores)}: lower "
            "questioner.engine.num_engines or roleplayer.engine.num_engines"
        )
    shares = iter(split_cores(cores, num_engines)) if pinned else iter(())
    own_threads = {"scorer": config.scorer.num_threads, "trainer": config.trainer.num_threads}
    own_cores = {
        "questioner": config.questioner.engine.cpu_cores,
        "roleplayer": config.roleplayer.engine.cpu_cores,
    }
    seats = []
    for bundle, role in zip(bundles, roles, strict=True):
        mine, threads = None, max(1, len(cores) // roles.count(role))
        if role in _ENGINES and pinned:
            mine = core_list(next(shares))
            mine = own_cores[role] or mine
            threads = num_listed(mine)
        threads = own_threads.get(role) or threads
        seats.append(
            Seat(bundle.actor, bundle.node, bundle.num_gpus, bundle.num_cpus, mine, threads)
        )
    return seats


def node_cores(facts: Sequence[NodeFacts]) -> dict[str, tuple[int, ...]]:
    """The cores of each node: as many as it has CPUs, apart from those of its machine's others.

    Worked example: two nodes with one CPU each on a machine with cores 0 and 1 -> (0,) and (1,).
    """
    taken: dict[tuple[str, tuple[int, ...]], int] = {}
    shares = {}
    for fact in facts:
        count = max(1, min(int(fact.node.num_cpus), len(fact.cores)))
        start = taken.get((fact.machine, fact.cores), 0)
        # A machine whose nodes claim more CPUs than it has: they share its cores.
        order = [fact.cores[(start + i) % len(fact.cores)] for i in range(count)]
        shares[fact.node.name] = tuple(sorted(order))
        taken[fact.machine, fact.cores] = start + count
    return shares


def seat_again(
    lost: Sequence[Seat],
    bundles: Sequence[Bundle],
    facts: Sequence[NodeFacts],
    others: Sequence[Seat],
) -> list[Seat]:
    """New seats for actors whose node is gone, on the nodes that `bundles` give them.

    `others` keep their seats; pinned actors get cores that none of them has, if there are any.
    """
    shares = node_cores(facts)
    seats: list[Seat] = []
    for old, bundle in zip(lost, bundles, strict=True):
        cores = old.cores
        if cores is not None:
            here = [s for s in (*others, *seats) if s.node == bundle.node]
            used = {core for s in here if s.cores for core in listed_cores(s.cores)}
            left = [core for core in shares[bundle.node] if core not in used]
            cores = core_list(left or shares[bundle.node])
        seats.append(replace(old, node=bundle.node, cores=cores))
    return seats


def seat_more(
    wanted: Sequence[Seat],
    settings: Sequence[str | None],
    bundles: Sequence[Bundle],
    facts: Sequence[NodeFacts],
    others: Sequence[Seat],
) -> list[Seat]:
    """Seats for engines that join, on the nodes that `bundles` give them; `others` keep theirs.

    `wanted` are seats as those of the first engine of the role, under the new names; `settings`
    are their `cpu_cores`. Pinned ones get cores that no engine has; raises MachineError without.
    """
    shares = node_cores(facts)
    seats = [replace(like, node=b.node) for like, b in zip(wanted, bundles, strict=True)]
    for node in {seat.node for seat in seats}:
        here = [n for n, s in enumerate(seats) if s.node == node and s.cores is not None]
        held = [s.cores for s in others if s.node == node and s.cores]
        given = cores_for_more([settings[n] for n in here], shares[node], held)
        for number, cores in zip(here, given, strict=True):
            seats[number] = replace(seats[number], cores=cores, threads=num_listed(cores))
    return seats


def full_nodes(facts: Sequence[NodeFacts], seats: Sequence[Seat]) -> set[str]:
    """Nodes where engines have all cores."""
    held: dict[str, set[int]] = {}
    for one in seats:
        held.setdefault(one.node, set()).update(listed_cores(one.cores) if one.cores else ())
    shares = node_cores(facts)
    return {node for node, cores in shares.items() if set(cores) <= held.get(node, set())}
