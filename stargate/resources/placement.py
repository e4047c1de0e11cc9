"""Where each actor lives, on which cores and with how many threads. Pure: plain values in and out.

    one machine: RunConfig, its cores and GPUs             -> place -> Placement: a Seat per actor
    a cluster:   RunConfig, nodes_for (cluster.py), nodes  -> seat  -> the same

On a machine without a GPU all engines share out the cores among themselves, the scorers get all of
them once more, and so does the trainer; on a cluster each node is shared out by itself. Every
thread count here is explicit, because what may run at the same time depends on it: a team of
several threads waits for its slowest one at each step, and two such teams on one core make each
other 10 times slower. Single threads only share, and gain 1 % from overlap (`stargate bench
iteration`), so they take turns as well.

    auto on CPU:  all teams fit side by side  -> scoring overlaps with the rollouts
                  else                        -> stages take turns
    training comes after all of them in any case: it needs every example, and all cores
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stargate.config.run import Device, RunConfig
from stargate.errors import MachineError
from stargate.resources.cluster import ENGINES, Need, Node, cluster_device, device_of, needs
from stargate.resources.gpu_phases import check_engines, is_colocated


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an actor lives and what it takes of Ray there. `cores`: a core list, None: not pinned.

    `node` is Ray's id of it, "" on the run's own machine, where Ray counts no CPUs.
    """

    actor: str
    node: str
    num_gpus: float
    num_cpus: float
    cores: str | None
    threads: int

    @property
    def role(self) -> str:
        return role_of(self.actor)

    @property
    def device(self) -> Device:
        """Where its process computes: who has a GPU, or a share of one, uses it."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True, slots=True)
class Placement:
    """The seats of all actors by name, whether rollouts, scoring and responses overlap, and why."""

    device: Device
    seats: Mapping[str, Seat]
    overlap: bool
    overlap_reason: str
    gpu_share: float = 0.0  # colocated: what each actor has of the one GPU; 0: GPUs of their own

    def of(self, role: str) -> list[Seat]:
        """The seats of one role, in the order of numbers."""
        return [seat for seat in self.seats.values() if seat.role == role]

    def by_node(self) -> dict[str, list[str]]:
        """Names of the actors on each node that is used."""
        found: dict[str, list[str]] = {}
        for seat in self.seats.values():
            found.setdefault(seat.node, []).append(seat.actor)
        return found

    @property
    def schedule(self) -> str:
        """What was decided, for the screen."""
        how = "overlap" if self.overlap else "take turns"
        return f"schedule: rollouts, scoring and responses {how}: {self.overlap_reason}"


def role_of(actor: str) -> str:
    """The role in an actor's name: "questioner" of "questioner-0"."""
    return actor.rpartition("-")[0]


def own_machine(cores: Sequence[int], num_gpus: int) -> Node:
    """The machine of a run that starts its own Ray, as a node."""
    return Node("", num_gpus, len(cores), cores=tuple(cores))


def place(
    config: RunConfig,
    cores: Sequence[int],
    num_gpus: int,
    *,
    gpu_gib: float | None = None,
    training: bool = True,
) -> Placement:
    """Shares a machine out. Raises MachineError when it is too small, naming the key to lower.

    `gpu_gib` is the memory of its first GPU, where it is known.
    """
    device = device_of(config, num_gpus, "this machine has no usable GPU")
    wanted = needs(config, device=device, training=training)
    if is_colocated(config):
        check_engines(config, gpu_gib, training=training)
    here = dict.fromkeys((need.name for need in wanted), "")
    placement = _seat(config, device, wanted, here, [own_machine(cores, num_gpus)])
    require_gpus(placement.seats.values(), num_gpus)
    seats = {name: replace(seat, num_cpus=0.0) for name, seat in placement.seats.items()}
    return replace(placement, seats=seats)


def seat(
    config: RunConfig, assigned: Mapping[str, str], nodes: Sequence[Node], *, training: bool = True
) -> Placement:
    """Cores and threads for actors whose nodes are known, by name. Raises MachineError."""
    device = cluster_device(config, nodes)
    wanted = needs(config, device=device, training=training)
    return _seat(config, device, wanted, assigned, nodes)


def _seat(
    config: RunConfig,
    device: Device,
    wanted: Sequence[Need],
    assigned: Mapping[str, str],
    nodes: Sequence[Node],
) -> Placement:
    shares = node_cores(nodes)
    taken = {need.name: (need.num_gpus, need.num_cpus) for need in wanted}
    found: dict[str, Seat] = {}
    overlaps: list[tuple[bool, str]] = []
    for node in nodes:
        cores = shares[node.name]
        here = [actor for actor, its_node in assigned.items() if its_node == node.name]
        pinned = dict(_pinned(config, here, cores, node)) if device == "cpu" else {}
        for actor in here:
            own = pinned.get(actor)
            threads = len(listed_cores(own)) if own else _threads(config, actor, here, cores)
            found[actor] = Seat(actor, node.name, *taken[actor], own, threads)
        teams = [found[actor].threads for actor in here if role_of(actor) != "trainer"]
        if device == "cpu" and teams:
            overlaps.append(decide_overlap(teams, len(cores)))
    # Stages overlap only if they may on every node.
    overlap, reason = min(overlaps or [(True, "the engines run on GPUs")], key=lambda one: one[0])
    share = 0.0
    if is_colocated(config):
        share = max((seat.num_gpus for seat in found.values()), default=0.0)
        overlap, reason = False, "all actors share one GPU, and engines sleep while others use it"
    elif config.schedule.overlap != "auto":
        overlap = config.schedule.overlap == "always"
        reason = f"schedule.overlap is {config.schedule.overlap!r}"
    return Placement(device, {actor: found[actor] for actor in assigned}, overlap, reason, share)


def _pinned(
    config: RunConfig, actors: Sequence[str], cores: Sequence[int], node: Node
) -> Iterator[tuple[str, str]]:
    """Equal shares of a node's cores for its engines; an engine's own setting wins."""
    engines = [actor for actor in actors if role_of(actor) in ENGINES]
    if len(engines) > len(cores):
        where = f"node {node.label}" if node.name else "this machine"
        raise MachineError(
            f"{len(engines)} engines need a core each, {where} has {len(cores)}: lower "
            "questioner.engine.num_engines or roleplayer.engine.num_engines"
        )
    for actor, share in zip(engines, split_cores(cores, len(engines)), strict=True):
        yield actor, config.engines[role_of(actor)].cpu_cores or core_list(share)


def _threads(config: RunConfig, actor: str, actors: Sequence[str], cores: Sequence[int]) -> int:
    """Of an actor that is not pinned: as its config says, else an equal part among its role."""
    role = role_of(actor)
    own = {"scorer": config.scorer.num_threads, "trainer": config.trainer.num_threads}
    return own.get(role) or max(1, len(cores) // [role_of(one) for one in actors].count(role))


def node_cores(nodes: Sequence[Node]) -> dict[str, tuple[int, ...]]:
    """The cores of each node: as many as it has CPUs, apart from those of its machine's others.

    Worked example: two nodes with one CPU each on a machine with cores 0 and 1 -> (0,) and (1,).
    """
    taken: dict[tuple[str, tuple[int, ...]], int] = {}
    shares = {}
    for node in nodes:
        count = max(1, min(int(node.num_cpus), len(node.cores)))
        start = taken.get((node.machine, node.cores), 0)
        # A machine whose nodes claim more CPUs than it has: they share its cores.
        order = [node.cores[(start + i) % len(node.cores)] for i in range(count)]
        shares[node.name] = tuple(sorted(order))
        taken[node.machine, node.cores] = start + count
    return shares


def seat_again(
    lost: Sequence[Seat],
    assigned: Mapping[str, str],
    nodes: Sequence[Node],
    others: Iterable[Seat],
) -> list[Seat]:
    """New seats for actors whose node is gone, on the nodes that they are `assigned` to.

    `others` keep their seats; pinned actors get cores that none of them has, if there are any.
    """
    shares = node_cores(nodes)
    present = list(others)
    for old in lost:
        node, cores = assigned[old.actor], old.cores
        if cores is not None:
            held = _held(present, node)
            cores = core_list([c for c in shares[node] if c not in held] or shares[node])
        present.append(replace(old, node=node, cores=cores))
    return present[-len(lost) :]


def seat_more(
    wanted: Mapping[str, str | None],
    assigned: Mapping[str, str],
    nodes: Sequence[Node],
    present: Mapping[str, Seat],
) -> list[Seat]:
    """Seats for engines that join, on the nodes that they are `assigned` to; those present stay.

    `wanted` has the `cpu_cores` setting of each. Pinned ones, as the first one of the role, get
    cores that no engine has; raises MachineError without.
    """
    shares = node_cores(nodes)
    first = {actor: present[f"{role_of(actor)}-0"] for actor in wanted}
    seats = {a: replace(first[a], actor=a, node=assigned[a]) for a in wanted}
    for node in set(assigned.values()):
        here = [a for a in wanted if assigned[a] == node and first[a].cores is not None]
        held = _held(present.values(), node)
        given = cores_for_more([wanted[actor] for actor in here], shares[node], held)
        for actor, cores in zip(here, given, strict=True):
            seats[actor] = replace(seats[actor], cores=cores, threads=len(listed_cores(cores)))
    return list(seats.values())


def full_nodes(nodes: Sequence[Node], seats: Iterable[Seat]) -> set[str]:
    """Nodes where engines have all cores."""
    there = list(seats)
    return {node for node, cores in node_cores(nodes).items() if set(cores) <= _held(there, node)}


def _held(seats: Iterable[Seat], node: str) -> set[int]:
    return {core for s in seats if s.node == node and s.cores for core in listed_cores(s.cores)}


def cores_for_more(wanted: Sequence[str | None], cores: Sequence[int], held: set[int]) -> list[str]:
    """Cores for engines that join a machine with these cores, of which others hold some.

    `wanted` has an entry per engine: its `cpu_cores` setting, which all engines of a role share, or
    None: then an equal part of what nobody holds. Raises MachineError when nothing is left.

    Worked example: [None, None] on cores 0 to 5, of which 0, 1 and 2 are held -> "3,4", "5".
    """
    used = held.union(*(listed_cores(one) for one in wanted if one))
    left = [core for core in cores if core not in used]
    num_more = sum(setting is None for setting in wanted)
    if num_more > len(left):
        raise MachineError(
            f"{num_more} more engines need a core each that no other engine holds, this machine "
            f"has {len(left)} of {len(cores)} left: take out others first, or begin the run with "
            "questioner.engine.cpu_cores and roleplayer.engine.cpu_cores, which a role's engines "
            "share"
        )
    shares = iter(split_cores(left, num_more))
    return [core_list(next(shares)) if setting is None else setting for setting in wanted]


def decide_overlap(threads: Sequence[int], num_cores: int) -> tuple[bool, str]:
    """Whether scorers may work while engines do, by the threads of each process; and why."""
    if sum(threads) <= num_cores:
        return True, f"all {sum(threads)} threads have a core of their own"
    return False, f"{sum(threads)} threads would share {num_cores} cores"


def require_gpus(seats: Iterable[Seat], num_gpus: int) -> None:
    """Raises MachineError when actors need more GPUs than a machine has."""
    needed = sum(seat.num_gpus for seat in seats)
    if needed > num_gpus:
        raise MachineError(
            f"needs {needed:g} GPUs, this machine has {num_gpus}: lower num_engines, "
            "tensor_parallel_size, scorer.num_gpus or trainer.num_ranks"
        )


def split_cores(cores: Sequence[int], count: int) -> list[Sequence[int]]:
    """Equal shares of the cores; the first ones get what is left over."""
    size, extra = divmod(len(cores), max(1, count))
    starts = [number * size + min(number, extra) for number in range(count + 1)]
    return [cores[start:end] for start, end in itertools.pairwise(starts)]


def core_list(cores: Sequence[int]) -> str:
    """Cores as vLLM takes them: "0,2"."""
    return ",".join(map(str, cores))


def listed_cores(cores: str) -> list[int]:
    """The cores of a list such as "0,2-4" or, with one list per rank, "0-1|2-3"."""
    found: list[int] = []
    for part in cores.replace("|", ",").split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
