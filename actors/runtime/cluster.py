"""A run's side of the cluster that it uses: agents on its nodes, seats, and ways between files.

    Discovery -> open: an agent on every node that is used; who sees the run's folder
           -> seats, site(node): what spawn.py needs to hire an actor there
           -> hire: waits for the actors' processes, aloud, with a deadline; an actor whose node
                    has left gets a seat on another one first
           -> bring / collect (FileAccess): a node that sees a folder uses it, others get it

All of it ends with the run; the cluster goes on.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.discovery import (
    WORKER_ENVIRONMENT,
    Discovery,
    ask_nodes,
    known,
    living_nodes,
    on_node,
    roles_by_node,
)
from stargate.actors.runtime.file_transfer import FileTransfer
from stargate.actors.runtime.node_agent import ROLEPLAYER, NodeAgent, NodeReport
from stargate.errors import EngineError, MachineError, one_line
from stargate.monitoring.progress import logged
from stargate.monitoring.waiting import Waiting, await_aloud
from stargate.resources.cluster import Node, assign, needs, usable_nodes
from stargate.resources.placement import full_nodes, role_of, seat_again, seat_more

# Seconds that a process has to start on its node, at least: Ray brings it the job's files first.
_PROCESS_SECONDS = 300.0
# Seconds that an agent has to remove its folders at the end.
_CLOSE_SECONDS = 20.0
# Seconds that a node may take to come back, or another one to have room, when one was lost.
_ROOM_SECONDS = 60.0
# Seconds between looks for a node that has room.
_LOOK_SECONDS = 5.0
# Calls that an agent handles side by side: chunks from a file transfer, and a question or two.
_AGENT_THREADS = 8
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Site:
    """A machine where actors live, with the folders that they use there."""

    base_model_dir: str | None  # None: nobody computes with it there
    roleplayer_dir: str | None
    log_dir: Path

    def model_dir(self, role: str) -> str:
        """Where the model of a role's actors is."""
        folder = self.roleplayer_dir if role == ROLEPLAYER else self.base_model_dir
        assert folder is not None  # it was fetched for whoever has a seat here
        return folder


class Cluster:
    """The nodes of one run. A FileAccess. `seats` are those of all actors, by name."""

    def __init__(
        self,
        discovery: Discovery,
        base_model_dir: Path,
        log_dir: Path,
        say: Callable[[str], None],
    ) -> None:
        """`base_model_dir` and `log_dir` are folders of the driver's."""
        self._discovery, self._config = discovery, discovery.config.cluster
        self._base_model_dir = str(base_model_dir)
        self._log_dir = log_dir
        self._tell = logged(say, __name__)
        self.seats = dict(discovery.placement.seats)
        # Of nodes that were made ready:
        self._nodes: dict[str, Node] = {}
        self._sites: dict[str, Site] = {}
        self._agents: dict[str, Any] = {}
        self._file_transfer = FileTransfer(self._agents, ray.put, self._tell)
        self._shared: dict[tuple[str, Path], bool] = {}
        self._moving = asyncio.Lock()

    async def open(self) -> None:
        """Starts the agents. Raises MachineError when a node does not answer in time."""
        reports = self._discovery.reports
        nodes = self._discovery.nodes
        await self._await_all(
            {f"node {node.label}": self._move_in(node, reports[node.name]) for node in nodes}
        )

    async def _move_in(self, node: Node, report: NodeReport) -> None:
        """Makes a node ready for the actors that its report is for."""
        name = node.name
        agent = ray.remote(NodeAgent).options(
            num_cpus=0,
            max_concurrency=_AGENT_THREADS,
            max_restarts=-1,
            scheduling_strategy=on_node(name),
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )
        self._agents[name] = agent = agent.remote()
        niceness: int = await remote(agent.start.remote())
        if niceness > 0:
            self._tell(f"note: Ray's workers run at nice {niceness} on node {node.label}")
        log_dir = self._log_dir
        if not await self._sees(name, log_dir):
            log_dir = Path(await remote(agent.log_dir.remote(log_dir.parent.name)))
            self._tell(f"node {node.label} does not share {self._log_dir.parent}: logs: {log_dir}")
        self._sites[name] = Site(report.base_model_dir, report.roleplayer_dir, log_dir)
        self._nodes[name] = known(node, report)

    def site(self, node: str) -> Site:
        """The folders on a node that is ready: `hire` sees to that."""
        return self._sites[node]

    @property
    def driver_options(self) -> Mapping[str, Any]:
        """Of Ray, for actors that share the driver's files and sockets."""
        return {"scheduling_strategy": on_node(self._discovery.driver_node)}

    async def hire(
        self, actors: Sequence[str], spawn: Callable[[], Awaitable[list[Any]]]
    ) -> list[Any]:
        """Calls `spawn` once the actors' nodes are ready; returns when their processes are there.

        Raises MachineError when no node has room, or a process is not there in time.
        """
        async with self._moving:
            await self._leave_lost_nodes(actors)
        handles = await spawn()
        try:
            awaited = {}
            for name, handle in zip(actors, handles, strict=True):
                what = f"a process of {name} on node {self._label(name)}"
                awaited[what] = handle.__ray_ready__.remote()
            await self._await_all(awaited)
        except BaseException:
            for handle in handles:
                ray.kill(handle)
            raise
        return handles

    async def meet(self, ranks: Sequence[str]) -> tuple[str, int]:
        """Address and port where trainer ranks meet: loopback if all are on one node, else the
        address of the first one's.
        """
        first = self.seats[ranks[0]].node
        alone = all(self.seats[rank].node == first for rank in ranks)
        address = _LOOPBACK if alone else self._nodes[first].address
        port: int = await remote(self._agents[first].free_port.remote(address))
        return address, port

    async def _leave_lost_nodes(self, actors: Sequence[str]) -> None:
        """Gives actors whose node has left the cluster a seat on another one."""
        living = {node.name for node in await asyncio.to_thread(living_nodes)}
        lost = [self.seats[name] for name in actors if self.seats[name].node not in living]
        if not lost:
            return
        names = [seat.actor for seat in lost]
        self._tell(f"{', '.join(names)}: node {self._label(names[0])} has left the cluster")
        if self._config.strategy == "colocated":
            raise MachineError(
                "the node of a colocated run has left the cluster; stargate resume goes on with it"
            )
        limit = max(self._config.wait_s, _ROOM_SECONDS)
        assigned = await self._find_room(names, limit, "other node")
        await self._make_ready(assigned)
        others = [seat for seat in self.seats.values() if seat not in lost]
        for seat in seat_again(lost, assigned, list(self._nodes.values()), others):
            self.seats[seat.actor] = seat
            self._tell(f"{seat.actor} moves to node {self._label(seat.actor)}")

    async def seat_more(self, wanted: Mapping[str, str | None]) -> None:
        """Seats for engines that join, on nodes that have room now or within cluster.wait_s.

        `wanted` has the `cpu_cores` setting of each. Raises MachineError when there are none.
        """
        # Not under the lock: whoever must be started again does not wait for new nodes.
        first = {name: self.seats[f"{role_of(name)}-0"] for name in wanted}
        pinned = any(first[name].cores and not own for name, own in wanted.items())
        limit = self._config.wait_s
        assigned = await self._find_room(list(wanted), limit, "node", avoid_full=pinned)
        async with self._moving:
            await self._make_ready(assigned)
            for seat in seat_more(wanted, assigned, list(self._nodes.values()), self.seats):
                self.seats[seat.actor] = seat
                self._tell(f"{seat.actor} gets a place on node {self._label(seat.actor)}")

    async def _make_ready(self, assigned: Mapping[str, str]) -> None:
        """Moves in on nodes that are new to this run; sees to the models of who comes to a node."""
        living = {node.name: node for node in await asyncio.to_thread(living_nodes)}
        for name, coming in roles_by_node(assigned).items():
            if name not in living:
                raise MachineError("a node has left the cluster just now; try again")
            present = {seat.role for seat in self.seats.values() if seat.node == name}
            if name in self._sites and coming <= present:
                continue
            node, roles = living[name], {name: coming | present}
            config = self._discovery.config
            asked = await asyncio.to_thread(ask_nodes, [node], roles, config, self._tell)
            report = asked[name]
            if site := self._sites.get(name):
                self._sites[name] = Site(report.base_model_dir, report.roleplayer_dir, site.log_dir)
            else:
                await self._move_in(node, report)

    async def _find_room(
        self, actors: Sequence[str], limit: float, what: str, *, avoid_full: bool = False
    ) -> dict[str, str]:
        """Nodes for these actors, from what is free. Waits for that up to `limit` seconds.

        `avoid_full`: none where engines of this run have all cores.
        """
        waiting = Waiting(self._tell)
        names = ", ".join(actors)
        device = self._discovery.placement.device
        first = {n.role: n for n in needs(self._discovery.config, device=device) if not n.number}
        wanted = [
            replace(first[role], number=int(number))
            for role, _, number in (name.rpartition("-") for name in actors)
        ]
        while True:
            free = usable_nodes(await asyncio.to_thread(living_nodes, free=True))
            full: set[str] = set()
            if avoid_full:
                full = full_nodes(list(self._nodes.values()), self.seats.values())
            try:
                nodes = [node for node in free if node.name not in full]
                return assign(wanted, nodes, self._config.strategy)
            except MachineError as error:
                if waiting.seconds >= limit:
                    note = f"; its engines have all cores of {len(full)} nodes" if full else ""
                    raise MachineError(f"no {what} has room for {names}: {error}{note}") from error
                waiting.speak(f"still waiting for a node with room for {names}")
            await asyncio.sleep(_LOOK_SECONDS)

    @asynccontextmanager
    async def bring(self, folder: str, actor: str) -> AsyncIterator[str]:
        """See FileAccess. m_0 is where engines are that it is pushed into: they began with it."""
        node = self.seats[actor].node
        if folder == self._base_model_dir:
            yield self._sites[node].model_dir("questioner")
        elif await self._sees(node, Path(folder).parent):
            yield folder
        else:
            async with self._file_transfer.lend(folder, node) as place:
                yield place

    @asynccontextmanager
    async def collect(self, folder: Path, actor: str) -> AsyncIterator[str]:
        """See FileAccess."""
        node = self.seats[actor].node
        if await self._sees(node, folder.parent):
            yield str(folder)
            return
        agent = self._agents[node]
        place: str = await remote(agent.scratch.remote(folder.name))
        try:
            yield place
            await self._file_transfer.fetch(node, place, folder)
        finally:
            with contextlib.suppress(EngineError):  # the node is gone, and the folder with it
                await remote(agent.remove.remote(place))

    async def shares(self, folder: Path, actor: str) -> bool:
        """See FileAccess."""
        return await self._sees(self.seats[actor].node, folder)

    async def close(self) -> None:
        """Removes what was put on the nodes, and ends the agents."""
        calls = asyncio.gather(
            *(_plain(agent.shutdown.remote()) for agent in self._agents.values()),
            return_exceptions=True,  # a node that is gone: its next agent tidies up
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(calls, _CLOSE_SECONDS)
        for agent in self._agents.values():
            ray.kill(agent)
        self._agents.clear()

    async def _sees(self, node: str, folder: Path) -> bool:
        """Whether a node shares a folder of the driver's, asked once: a file there is compared."""
        if node == self._discovery.driver_node:
            return True
        if self._config.shared_storage == "never":
            return False
        if (node, folder) not in self._shared:
            content = secrets.token_hex(16)
            file = folder / f".shared-{content[:8]}"
            try:
                file.write_text(content, encoding="utf-8")
                seen = await remote(self._agents[node].sees.remote(str(file), content))
            except OSError:  # a folder that the driver can't write is nobody's run directory
                seen = False
            finally:
                file.unlink(missing_ok=True)
            self._shared[node, folder] = seen
        return self._shared[node, folder]

    async def _await_all(self, awaited: Mapping[str, Awaitable[Any]]) -> None:
        """Waits for all, aloud. Raises the first error, or MachineError when time is over."""
        limit = max(self._config.wait_s, _PROCESS_SECONDS)
        calls = {what: _plain(call) for what, call in awaited.items()}
        await await_aloud(calls, lambda late: self._tell(f"setup: still waiting for {late}"), limit)

    def _label(self, actor: str) -> str:
        node = self.seats[actor].node
        return self._nodes[node].label if node in self._nodes else node


async def _plain(call: Awaitable[Any]) -> Any:
    """A call's result; Ray's own errors as ours."""
    try:
        return await remote(call)
    except RayError as error:
        raise EngineError(one_line(error)[:300]) from error
