"""Attaching to a cluster, and deciding on it before anything starts.

    ray.init(address) -> the nodes it has -> seating.bundles_for: room for everybody, or one line
                      -> a task on each node to be used: its cores, models, version of our code
                      -> Discovery: plain values, for actors/runtime/cluster.py

Synchronous: it runs before the event loop does. Every wait speaks and has a deadline.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stargate.actors.runtime.node_agent import ModelNames, NodeReport, node_report, sources_digest
from stargate.config.run import FactsGrounding, RunConfig
from stargate.errors import MachineError, StargateError, one_line
from stargate.resources.cluster import Bundle, Need, Node, cluster_device, needs
from stargate.resources.seating import NodeFacts, Seating, bundles_for, seat

# Seconds between lines that say what is awaited.
SPEAK_SECONDS = 30.0
# Seconds between looks at the cluster.
_LOOK_SECONDS = 2.0
# Seconds that a run which has just ended has to give back what it held.
_BUSY_SECONDS = 10.0
# Seconds that a server has to answer at all; Ray itself would try for minutes.
_ANSWER_SECONDS = 10.0
# Ray runs workers at nice 15: anything else on the machine would starve the engines.
WORKER_ENVIRONMENT = {"RAY_worker_niceness": "0"}
_GIB = 2**30

Say = Callable[[str], None]


@dataclass(frozen=True)
class Discovery:
    """What was found and decided. Nodes are named by Ray's ids."""

    address: str
    driver_node: str
    facts: tuple[NodeFacts, ...]
    reports: Mapping[str, NodeReport]
    needed: Mapping[str, Need]
    seating: Seating
    names: ModelNames


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
    grounded = isinstance(config.roleplayer.grounding, FactsGrounding)
    names = ModelNames(config.model, config.roleplayer.model, grounded, config.trust_remote_code)
    with attached_from_here(address):
        bundles = find_room(config, say, training=training)
        used = {bundle.node for bundle in bundles}
        present = {facts.node.name: facts for facts in living_nodes() if facts.node.name in used}
        if missing := used - present.keys():
            raise MachineError(f"{len(missing)} nodes have left the cluster just now; try again")
        reports = ask_nodes(list(present.values()), names, say)
        facts = tuple(known(fact, reports[name]) for name, fact in present.items())
        seating = seat(config, bundles, facts)
        device = seating.placement.device
        needed = {need.name: need for need in needs(config, device=device, training=training)}
        labels = {fact.node.name: fact.label for fact in facts}
        for node, actors in seating.by_node().items():
            say(f"cluster: node {labels[node]}: {', '.join(actors)}")
        driver_node = ray.get_runtime_context().get_node_id()
    return Discovery(address, driver_node, facts, reports, needed, seating, names)


def living_nodes(*, free: bool = False) -> list[NodeFacts]:
    """The cluster's nodes with all that they have, or with what nobody holds. No cores yet."""
    left = ray._private.state.available_resources_per_node() if free else {}
    alike: dict[str, int] = {}
    found = []
    for entry in ray.nodes():
        if not entry["Alive"]:
            continue
        name, address = entry["NodeID"], entry["NodeManagerAddress"]
        # What a node lacks at the moment is not listed.
        has = left.get(name, {}) if free else entry["Resources"]
        node = Node(
            name,
            int(has.get("GPU", 0.0) + 1e-6),
            round(has.get("CPU", 0.0), 4),
            round(has.get("memory", 0.0) / _GIB, 2),
        )
        label = str(entry.get("NodeManagerHostname") or address)
        alike[label] = alike.get(label, 0) + 1
        if alike[label] > 1:
            label = f"{label} ({alike[label]})"
        found.append(NodeFacts(node, label, address, name, ()))
    return found


def known(fact: NodeFacts, report: NodeReport) -> NodeFacts:
    """A node with what it has said of itself."""
    return NodeFacts(fact.node, fact.label, fact.address, report.machine, report.cores)


def find_room(config: RunConfig, say: Say, *, training: bool) -> tuple[Bundle, ...]:
    """A node for every actor, from what is free now; waits up to cluster.wait_s for it.

    Raises MachineError with what is missing. An autoscaler is told what is wanted.
    """
    started = spoken = time.monotonic()
    asked = False
    problem: MachineError
    try:
        while True:
            try:
                return _room(config, training=training)
            except _Busy as error:
                problem, limit = error, max(config.cluster.wait_s, _BUSY_SECONDS)
            except MachineError as error:
                problem, limit = error, config.cluster.wait_s
            now = time.monotonic()
            if now - started >= limit:
                raise problem
            if not asked:
                asked = True
                _ask_autoscaler(config, training)
                say(f"waiting up to {limit:.0f} s for the cluster: {problem}")
            elif now - spoken >= SPEAK_SECONDS:
                spoken = now
                say(f"still waiting for the cluster, {now - started:.0f} s so far: {problem}")
            time.sleep(_LOOK_SECONDS)
    finally:
        if asked:
            _request([])


class _Busy(MachineError):
    """The cluster is large enough, but others use it."""


def _room(config: RunConfig, *, training: bool) -> tuple[Bundle, ...]:
    bundles_for(config, [facts.node for facts in living_nodes()], training=training)
    try:
        free = [facts.node for facts in living_nodes(free=True)]
        return bundles_for(config, free, training=training)
    except MachineError as error:
        raise _Busy(
            f"others use a part of the cluster; of what is free: {error}, or raise cluster.wait_s"
        ) from error


def _ask_autoscaler(config: RunConfig, training: bool) -> None:
    nodes = [facts.node for facts in living_nodes()]
    # A cluster that has no node yet can still be asked for some.
    gpus = config.device == "cuda" or (bool(nodes) and cluster_device(config, nodes) == "cuda")
    wanted = needs(config, device="cuda" if gpus else "cpu", training=training)
    shapes = ({"CPU": need.num_cpus, "GPU": need.num_gpus} for need in wanted)
    _request([{k: v for k, v in shape.items() if v} for shape in shapes if any(shape.values())])


def _request(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def ask_nodes(nodes: Sequence[NodeFacts], names: ModelNames, say: Say) -> dict[str, NodeReport]:
    """Every node's report, side by side; models that are not there yet are fetched now.

    Raises what went wrong on a node, with its name; MachineError if it has other code than we have.
    """
    calls = {
        ray.remote(node_report).options(**task_options(facts.node.name)).remote(names): facts
        for facts in nodes
    }
    reports = {}
    waiting, started = list(calls), time.monotonic()
    while waiting:
        done, waiting = ray.wait(waiting, timeout=SPEAK_SECONDS)
        for call in done:
            reports[calls[call].node.name] = _report(call, calls[call].label)
        if waiting and not done:
            labels = ", ".join(sorted(calls[call].label for call in waiting))
            say(f"still waiting for models on {labels}, {time.monotonic() - started:.0f} s so far")
    ours = sources_digest()
    for facts in nodes:
        check_sources(reports[facts.node.name], facts.label, ours)
    return reports


def check_sources(report: NodeReport, label: str, ours: str) -> None:
    """Raises MachineError unless a node runs the code that we run."""
    if report.sources != ours:
        raise MachineError(
            f"node {label}: its stargate is not the one that runs here; install the same version "
            "on all nodes, or use `stargate submit`, which sends it"
        )


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
