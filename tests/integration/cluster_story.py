"""What test_cluster_nodes.py plays on a real cluster, in a process of its own: a Ray client.

Ray reads its authentication mode once per process. `python -m tests.integration.cluster_story NAME
NODES FOLDER`, where NODES is a JSON object: the cluster's address, and its processes.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.actor_slots import ActorSlot, HeldWeights
from stargate.actors.runtime.cluster import Cluster
from stargate.actors.runtime.discovery import attach, discover_cluster
from stargate.actors.runtime.spawn import seated_class
from stargate.actors.runtime.supervisor import Supervisor
from stargate.config.files import load_config
from stargate.config.run import RunConfig
from stargate.errors import EngineError, MachineError


class Holder:
    """An actor that takes weights as an engine does: it notes where it is and what it was given."""

    def __init__(self) -> None:
        self._given: list[tuple[str, int]] = []

    async def start(self) -> None:
        """Nothing has to be loaded."""

    async def reported_version(self) -> int:
        """Of the last weights that it was given; an answer says that it lives."""
        return self._given[-1][1] if self._given else 0

    async def load_weights(self, folder: str, version: int) -> None:
        self._given.append(((Path(folder) / "model.safetensors").read_text(), version))

    async def told(self) -> tuple[str, list[tuple[str, int]], int]:
        """The node, what was loaded, and the process's niceness."""
        import ray

        return ray.get_runtime_context().get_node_id(), self._given, os.nice(0)


def config(address: str, *overrides: str) -> RunConfig:
    changes = ("cluster.strategy=spread", "cluster.wait_s=60", "scorer.num_scorers=1")
    return load_config("cpu_demo", [f"cluster.address={address}", *changes, *overrides])


def refused(address: str) -> None:
    """A run that fits, and one that does not, on two nodes with one CPU each."""
    import ray

    said: list[str] = []
    discovery = discover_cluster(config(address), address, said.append)  # waits for nodes to join
    assert [line.partition(":")[0] for line in said][-2:] == ["cluster", "cluster"], said
    assert len(discovery.placement.by_node()) == 2
    assert discovery.driver_node not in discovery.placement.by_node()  # the head has no CPU
    ray.shutdown()  # the discovery stays attached
    large = config(address, "questioner.engine.num_engines=8", "cluster.wait_s=0")
    problem = problem_of(large, address)
    assert problem == "needs 9 CPUs, the cluster has 2: lower questioner.engine.num_engines"
    model = problem_of(config(address, "roleplayer.model=/nowhere/model"), address)
    assert model.startswith("node ") and "/nowhere/model" in model, model
    assert "refused" in str(error_of(lambda: attach("127.0.0.1:9")))


def problem_of(settings: RunConfig, address: str) -> str:
    return str(error_of(lambda: discover_cluster(settings, address, print)))


def error_of(action: Any) -> Exception:
    from stargate.errors import StargateError

    try:
        action()
    except StargateError as error:
        assert "\n" not in str(error)
        return error
    raise AssertionError("it was not refused")


def node_lost(address: str, processes: list[int], folder: Path) -> None:
    """The node of an engine is killed; it goes on on the other one."""
    settings = config(address, "cluster.shared_storage=never")
    discovery = discover_cluster(settings, address, print)
    for name in ("logs", "models/m1", "base"):
        (folder / name).mkdir(parents=True)
    (folder / "models/m1/model.safetensors").write_text("weights of m1")
    asyncio.run(_node_lost(processes, settings, discovery, folder))  # the discovery stays attached


async def _node_lost(
    processes: list[int], settings: RunConfig, discovery: Any, folder: Path
) -> None:
    import ray

    said: list[str] = []
    cluster = Cluster(discovery, folder / "base", folder / "logs", said.append)
    await cluster.open()
    try:

        async def spawn() -> list[Any]:
            return [seated_class(Holder, cluster.seats["questioner-0"], {}).remote()]

        handles = await cluster.hire(["questioner-0"], spawn)
        first, given, niceness = await handles[0].told.remote()
        assert first in discovery.placement.by_node()
        assert (given, niceness) == ([], 0)
        weights = HeldWeights(str(folder / "base"))
        with weights.pushing(str(folder / "models/m1"), 1):
            pass  # m_1 is what engines must hold from now on
        slot = ActorSlot(
            "questioner",
            handles,
            (0,),
            lambda: cluster.hire(["questioner-0"], spawn),
            lambda actor: actor.reported_version.remote(),
        )
        supervisor = Supervisor([slot], weights, 3, ray.kill, said.append, None, cluster)
        kill_node(processes, first)
        await ended(handles[0])
        started = time.monotonic()
        renewed = await supervisor.replace("questioner", 0, MachineError("its node was killed"))
        print(f"back after {time.monotonic() - started:.1f} s", said)
        node, given, _ = await renewed.told.remote()
        assert node != first
        assert given == [("weights of m1", 1)]
        assert any(line.startswith("questioner-0 moves to node") for line in said), said
        ray.kill(renewed)
    finally:
        await cluster.close()


async def ended(actor: Any) -> None:
    """Returns when the actor's process has noticed that its node is gone, seconds after it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            await remote(actor.reported_version.remote())
        except EngineError:
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the actor of a killed node still answers")


def kill_node(processes: list[int], node: str) -> None:
    """kill -9 on all processes of the node with this id: they have it on their command lines."""
    for leader in processes:
        members = [p for p in Path("/proc").glob("[0-9]*") if group_of(p) == leader]
        if any(node.encode() in command_line(process) for process in members):
            os.killpg(leader, signal.SIGKILL)
            return
    raise AssertionError(f"no process of node {node}")


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""  # it ended while we looked


def group_of(process: Path) -> int | None:
    try:
        return os.getpgid(int(process.name))
    except OSError:
        return None


def main(name: str, nodes: str, folder: str) -> None:
    given = json.loads(nodes)
    if name == "refused":
        refused(given["address"])
    else:
        node_lost(given["address"], given["processes"], Path(folder))
    print("the story ends well")


if __name__ == "__main__":
    main(*sys.argv[1:])
