"""Attaching to a cluster, and deciding on it before anything starts.

    ray.init(address) -> the nodes it has -> cluster.nodes_for: room for everybody, or one line
                      -> a task on each node to be used: its cores, models, version of our code
                      -> Discovery: plain values, for actors/runtime/cluster.py

Synchronous: it runs before the event loop does. Every wait speaks and has a deadline.
"""

import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stargate.actors.runtime.node_agent import NodeReport, node_report, sources_digest
from stargate.config.run import RunConfig
from stargate.errors import MachineError, StargateError, one_line
from stargate.monitoring.waiting import SPEAK_SECONDS, Waiting
from stargate.resources.cluster import Node, cluster_device, needs, nodes_for
from stargate.resources.placement import Placement, role_of, seat

# Seconds between looks at the cluster.
_LOOK_SECONDS = 2.0
# Seconds that a run which has just ended has to give back what it held.
_BUSY_SECONDS = 10.0
# Seconds that a server has to answer at all; Ray itself would try for minutes.
_ANSWER_SECONDS = 10.0
# Ray runs workers at nice 15: anything else on the machine would starve the engines.
WORKER_ENVIRONMENT = {"RAY_worker_niceness": "0"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Discovery:
    """What was found and decided for a run. Nodes are named by Ray's ids."""

    config: RunConfig
    address: str
    driver_node: str
    nodes: tuple[Node, ...]
    reports: Mapping[str, NodeReport]
    placement: Placement


def attach(address: str) -> None:
    """Connects this process to a running cluster, if it is not already. Raises MachineError."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise MachineError(
            f"cluster.address={address}: it wants a token and got none or a wrong one; export "
            "RAY_AUTH_TOKEN"
        ) from error
    except (OSError, RuntimeError, ValueError, OverflowError, RayError) as error:
        problem = one_line(error)[:300]
        raise MachineError(
            f"cluster.address={address}: can't attach to a Ray cluster there: {problem}; a run "
            "must start on one of the cluster's nodes, with its token in RAY_AUTH_TOKEN if it "
            "wants one"
        ) from error


@contextlib.contextmanager
def attached_from_here(address: str) -> Iterator[None]:
    """`attach`, undone only if the block fails.

    Not a moment of a job may be unattached: Ray deletes a job's working directory, from which we
    run, when the job's driver leaves.
    """
    attach(address)
    try:
        yield
    except BaseException:
        ray.shutdown()
        raise


def discover_cluster(
    config: RunConfig, address: str, say: Say, *, training: bool = True
) -> Discovery:
    """Finds a seat for every actor and checks the nodes to be used; this process stays attached.

    Raises MachineError.
    """
    with attached_from_here(address):
        assigned = find_room(config, say, training=training)
        used = set(assigned.values())
        present = [node for node in living_nodes() if node.name in used]
        if missing := len(used) - len(present):
            raise MachineError(f"{missing} nodes have left the cluster just now; try again")
        reports = ask_nodes(present, roles_by_node(assigned), config, say)
        nodes = tuple(known(node, reports[node.name]) for node in present)
        placement = seat(config, assigned, nodes, training=training)
        labels = {node.name: node.label for node in nodes}
        for node, actors in placement.by_node().items():
            say(f"cluster: node {labels[node]}: {', '.join(actors)}")
        driver_node = ray.get_runtime_context().get_node_id()
    return Discovery(config, address, driver_node, nodes, reports, placement)


def living_nodes(*, free: bool = False) -> list[Node]:
    """The cluster's nodes with all that they have, or with what nobody holds. No cores yet."""
    left = ray._private.state.available_resources_per_node() if free else {}
    alike: Counter[str] = Counter()
    found = []
    for entry in ray.nodes():
        if not entry["Alive"]:
            continue
        name, address = entry["NodeID"], entry["NodeManagerAddress"]
        # What a node lacks at the moment is not listed.
        has = left.get(name, {}) if free else entry["Resources"]
        label = str(entry.get("NodeManagerHostname") or address)
        alike[label] += 1
        if alike[label] > 1:
            label = f"{label} ({alike[label]})"
        gpus, cpus = int(has.get("GPU", 0.0) + 1e-6), round(has.get("CPU", 0.0), 4)
        found.append(Node(name, gpus, cpus, label, address, machine=name))
    return found


def known(node: Node, report: NodeReport) -> Node:
    """A node with what it has said of itself."""
    return replace(node, machine=report.machine, cores=report.cores)


def find_room(config: RunConfig, say: Say, *, training: bool) -> dict[str, str]:
    """A node for every actor, from what is free now; waits up to cluster.wait_s for it.

    Raises MachineError with what is missing. An autoscaler is told what is wanted.
    """
    waiting = Waiting(say)
    asked = False
    try:
        while True:
            try:
                return _room(config, training=training)
            except MachineError as error:
                wait_s, busy = config.cluster.wait_s, isinstance(error, _Busy)
                limit = max(wait_s, _BUSY_SECONDS) if busy else wait_s
                if waiting.seconds >= limit:
                    raise
                if not asked:
                    asked = True
                    _ask_autoscaler(config, training)
                    say(f"waiting up to {limit:.0f} s for the cluster: {error}")
                waiting.speak(
                    f"still waiting for the cluster, {waiting.seconds:.0f} s so far: {error}"
                )
            time.sleep(_LOOK_SECONDS)
    finally:
        if asked:
            request_resources(bundles=[])


class _Busy(MachineError):
    """The cluster is large enough, but others use it."""


def _room(config: RunConfig, *, training: bool) -> dict[str, str]:
    nodes_for(config, living_nodes(), training=training)
    try:
        return nodes_for(config, living_nodes(free=True), training=training)
    except MachineError as error:
        raise _Busy(
            f"others use a part of the cluster; of what is free: {error}, or raise cluster.wait_s"
        ) from error


def _ask_autoscaler(config: RunConfig, training: bool) -> None:
    nodes = living_nodes()
    # A cluster that has no node yet can still be asked for some.
    gpus = config.device == "cuda" or (bool(nodes) and cluster_device(config, nodes) == "cuda")
    wanted = needs(config, device="cuda" if gpus else "cpu", training=training)
    shapes = ({"CPU": need.num_cpus, "GPU": need.num_gpus} for need in wanted)
    request_resources(
        bundles=[{k: v for k, v in shape.items() if v} for shape in shapes if any(shape.values())]
    )


def roles_by_node(assigned: Mapping[str, str]) -> dict[str, set[str]]:
    """The roles of the actors on each node, from the node of every actor."""
    found: dict[str, set[str]] = {}
    for actor, node in assigned.items():
        found.setdefault(node, set()).add(role_of(actor))
    return found


def ask_nodes(
    nodes: Sequence[Node], roles: Mapping[str, Collection[str]], config: RunConfig, say: Say
) -> dict[str, NodeReport]:
    """Every node's report, side by side; what its roles' models lack there is fetched now.

    Raises what went wrong on a node, with its name; MachineError if it has other code than we have.
    """
    calls = {
        ray.remote(node_report)
        .options(**task_options(node.name))
        .remote(config, roles[node.name]): node
        for node in nodes
    }
    reports = {}
    left, waiting = list(calls), Waiting(say)
    while left:
        done, left = ray.wait(left, timeout=SPEAK_SECONDS)
        for call in done:
            reports[calls[call].name] = _report(call, calls[call].label)
        labels = ", ".join(sorted(calls[call].label for call in left))
        if left:
            waiting.speak(f"still waiting for models on {labels}, {waiting.seconds:.0f} s so far")
    ours = sources_digest()
    for node in nodes:
        if reports[node.name].sources != ours:
            raise MachineError(
                f"node {node.label}: its stargate is not the one that runs here; install the same "
                "version on all nodes, or use `stargate submit`, which sends it"
            )
    return reports


def _report(call: Any, label: str) -> NodeReport:
    try:
        report: NodeReport = ray.get(call)
        return report
    except RayTaskError as error:
        if isinstance(error.cause, StargateError):
            raise type(error.cause)(f"node {label}: {error.cause}") from None
        problem = one_line(error.cause or error)[-300:]
        raise MachineError(f"node {label}: stargate does not run there: {problem}") from error
    except RayError as error:
        problem = one_line(error)[:300]
        raise MachineError(f"node {label}: a process there ended: {problem}") from error


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """Ray's strategy for exactly this node."""
    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def task_options(node: str) -> dict[str, Any]:
    """Of Ray, for a task on a node that takes nothing of what the node has."""
    return {
        "num_cpus": 0,
        "max_retries": 0,
        "scheduling_strategy": on_node(node),
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }
