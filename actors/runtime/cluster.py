"""A run's side of the cluster that it uses: agents on its nodes, seats, and ways between files.

    Discovery -> open: an agent on every node that is used; who sees the run's folder
           -> spot(actor): what spawn.py needs to hire an actor there
           -> hire: waits for the actors' processes, aloud, with a deadline; an actor whose node
                    has left gets a seat on another one first
           -> bring / collect (file_access.py): a node that sees a folder uses it, others get it

All of it ends with the run; the cluster goes on.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.discovery import (
    SPEAK_SECONDS,
    WORKER_ENVIRONMENT,
    Discovery,
    check_sources,
    known,
    living_nodes,
    on_node,
)
from stargate.actors.runtime.file_access import Spot
from stargate.actors.runtime.file_transfer import FileTransfer
from stargate.actors.runtime.node_agent import NodeAgent, NodeReport, sources_digest
from stargate.config.run import ClusterConfig
from stargate.errors import EngineError, MachineError, one_line
from stargate.resources.cluster import Bundle, Need, place_needs
from stargate.resources.seating import (
    NodeFacts,
    Seat,
    full_nodes,
    seat_again,
    seat_more,
    usable_nodes,
)

_log = logging.getLogger(__name__)

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
class _Home:
    """A node that is in use."""

    facts: NodeFacts
    report: NodeReport
    log_dir: Path


class Cluster:
    """The nodes of one run. A FileAccess."""

    def __init__(
        self,
        discovery: Discovery,
        config: ClusterConfig,
        base_model_dir: Path,
        log_dir: Path,
        say: Callable[[str], None],
    ) -> None:
        """`base_model_dir` and `log_dir` are folders of the driver's."""
        self._discovery, self._config = discovery, config
        self._base_model_dir = str(base_model_dir)
        self._log_dir = log_dir
        self._say = say
        self._seats = {seat.actor: seat for seat in discovery.seating.seats}
        self._homes: dict[str, _Home] = {}
        self._agents: dict[str, Any] = {}
        self._file_transfer = FileTransfer(self._agents, ray.put, self._tell)
        self._shared: dict[tuple[str, Path], bool] = {}
        self._meeting = (_LOOPBACK, 0)
        self._moving = asyncio.Lock()

    async def open(self) -> None:
        """Starts the agents. Raises MachineError when a node does not answer in time."""
        facts = {fact.node.name: fact for fact in self._discovery.facts}
        await self._await_all(
            {
                f"node {fact.label}": self._move_in(fact, self._discovery.reports[name])
                for name, fact in facts.items()
            }
        )

    async def _move_in(self, facts: NodeFacts, report: NodeReport | None) -> None:
        """Makes a node ready for actors."""
        name = facts.node.name
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
            self._tell(f"note: Ray's workers run at nice {niceness} on node {facts.label}")
        if report is None:
            asked: NodeReport = await remote(agent.report.remote(self._discovery.names))
            check_sources(asked, facts.label, sources_digest())
            report = asked
        log_dir = self._log_dir
        if not await self._sees(name, log_dir):
            log_dir = Path(await remote(agent.log_dir.remote(log_dir.parent.name)))
            self._tell(f"node {facts.label} does not share {self._log_dir.parent}: logs: {log_dir}")
        self._homes[name] = _Home(known(facts, report), report, log_dir)

    def spot(self, actor: str) -> Spot:
        """Where an actor is hired. Its node must be ready: `hire` sees to that."""
        seat = self._seats[actor]
        home = self._homes[seat.node]
        return Spot(
            base_model_dir=home.report.base_model_dir,
            roleplayer_dir=home.report.roleplayer_dir,
            log_dir=home.log_dir,
            cores=seat.cores,
            threads=seat.threads,
            options={
                "num_cpus": seat.num_cpus,
                "num_gpus": seat.num_gpus,
                "scheduling_strategy": on_node(seat.node),
            },
        )

    @property
    def driver_options(self) -> Mapping[str, Any]:
        """Of Ray, for actors that share the driver's files and sockets."""
        return {"scheduling_strategy": on_node(self._discovery.driver_node)}

    @property
    def meeting(self) -> tuple[str, int]:
        """Address and port where the trainer ranks that are being hired meet."""
        return self._meeting

    async def hire(self, actors: Sequence[str], spawn: Callable[[], list[Any]]) -> list[Any]:
        """Calls `spawn` once the actors' nodes are ready; returns when their processes are there.

        Raises MachineError when no node has room, or a process is not there in time.
        """
        async with self._moving:
            await self._leave_lost_nodes(actors)
        if actors[0].startswith("trainer"):
            self._meeting = await self._meet(actors)
        handles = spawn()
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

    async def _meet(self, ranks: Sequence[str]) -> tuple[str, int]:
        """Loopback if all ranks are on one node, else the address of the first one's."""
        first = self._seats[ranks[0]].node
        alone = all(self._seats[rank].node == first for rank in ranks)
        address = _LOOPBACK if alone else self._homes[first].facts.address
        port: int = await remote(self._agents[first].free_port.remote(address))
        return address, port

    async def _leave_lost_nodes(self, actors: Sequence[str]) -> None:
        """Gives actors whose node has left the cluster a seat on another one."""
        living = {facts.node.name for facts in await asyncio.to_thread(living_nodes)}
        lost = [self._seats[name] for name in actors if self._seats[name].node not in living]
        if not lost:
            return
        names = ", ".join(seat.actor for seat in lost)
        self._tell(f"{names}: node {self._label(lost[0].actor)} has left the cluster")
        if self._config.strategy == "colocated":
            raise MachineError(
                "the node of a colocated run has left the cluster; stargate resume goes on with it"
            )
        limit = max(self._config.wait_s, _ROOM_SECONDS)
        bundles = await self._find_room([seat.actor for seat in lost], limit, "other node")
        free = {facts.node.name: facts for facts in await asyncio.to_thread(living_nodes)}
        for node in {bundle.node for bundle in bundles} - self._homes.keys():
            await self._move_in(free[node], None)
        others = [seat for seat in self._seats.values() if seat not in lost]
        facts = [home.facts for home in self._homes.values()]
        for seat in seat_again(lost, bundles, facts, others):
            self._seats[seat.actor] = seat
            self._tell(f"{seat.actor} moves to node {self._label(seat.actor)}")

    async def seat_more(self, wanted: Mapping[str, str | None]) -> None:
        """Seats for engines that join, on nodes that have room now or within cluster.wait_s.

        `wanted` has the `cpu_cores` setting of each. Raises MachineError when there are none.
        """
        # Not under the lock: whoever must be started again does not wait for new nodes.
        pinned = any(self._first(name).cores and not own for name, own in wanted.items())
        limit = self._config.wait_s
        bundles = await self._find_room(list(wanted), limit, "node", avoid_full=pinned)
        async with self._moving:
            living = {facts.node.name: facts for facts in await asyncio.to_thread(living_nodes)}
            for node in {bundle.node for bundle in bundles} - self._homes.keys():
                if node not in living:
                    raise MachineError("a node has left the cluster just now; try again")
                await self._move_in(living[node], None)
            like = [replace(self._first(name), actor=name) for name in wanted]
            facts = [home.facts for home in self._homes.values()]
            present = list(self._seats.values())
            for seat in seat_more(like, list(wanted.values()), bundles, facts, present):
                self._seats[seat.actor] = seat
                self._tell(f"{seat.actor} gets a place on node {self._label(seat.actor)}")

    def leave_seat(self, actor: str) -> None:
        """An engine that has left, or did not come, needs its seat no more."""
        self._seats.pop(actor, None)

    def _first(self, actor: str) -> Seat:
        """The seat of the first actor of the same role."""
        return self._seats[f"{actor.rpartition('-')[0]}-0"]

    def _need(self, actor: str) -> Need:
        role, _, number = actor.rpartition("-")
        return replace(self._discovery.needed[f"{role}-0"], number=int(number))

    async def _find_room(
        self, actors: Sequence[str], limit: float, what: str, *, avoid_full: bool = False
    ) -> tuple[Bundle, ...]:
        """Nodes for these actors, from what is free. Waits for that up to `limit` seconds.

        `avoid_full`: none where engines of this run have all cores.
        """
        wanted = [self._need(name) for name in actors]
        started = spoken = time.monotonic()
        while True:
            free = await asyncio.to_thread(living_nodes, free=True)
            full: set[str] = set()
            if avoid_full:
                homes = [home.facts for home in self._homes.values()]
                full = full_nodes(homes, list(self._seats.values()))
            nodes = usable_nodes([facts.node for facts in free if facts.node.name not in full])
            try:
                return place_needs(wanted, nodes, self._config.strategy)
            except MachineError as error:
                now = time.monotonic()
                if now - started >= limit:
                    note = f"; its engines have all cores of {len(full)} nodes" if full else ""
                    raise MachineError(
                        f"no {what} has room for {', '.join(actors)}: {error}{note}"
                    ) from error
                if now - spoken >= SPEAK_SECONDS:
                    spoken = now
                    self._tell(f"still waiting for a node with room for {', '.join(actors)}")
            await asyncio.sleep(_LOOK_SECONDS)

    @asynccontextmanager
    async def bring(self, folder: str, actor: str) -> AsyncIterator[str]:
        """See FileAccess. m_0 is on every node already."""
        node = self._seats[actor].node
        if folder == self._base_model_dir:
            yield self._homes[node].report.base_model_dir
        elif await self._sees(node, Path(folder).parent):
            yield folder
        else:
            async with self._file_transfer.lend(folder, node) as place:
                yield place

    @asynccontextmanager
    async def collect(self, folder: Path, actor: str) -> AsyncIterator[str]:
        """See FileAccess."""
        node = self._seats[actor].node
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
        return await self._sees(self._seats[actor].node, folder)

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
        tasks = {asyncio.ensure_future(_plain(call)): what for what, call in awaited.items()}
        limit = max(self._config.wait_s, _PROCESS_SECONDS)
        started = time.monotonic()
        waiting = set(tasks)
        try:
            while waiting:
                left = started + limit - time.monotonic()
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=max(0.0, min(SPEAK_SECONDS, left)),
                    return_when=asyncio.FIRST_EXCEPTION,
                )
                for task in done:
                    task.result()
                names = ", ".join(sorted(tasks[task] for task in waiting))
                if waiting and left <= 0:
                    raise MachineError(f"not there after {limit:.0f} s: {names}")
                if waiting:
                    self._tell(f"setup: still waiting for {names}")
        finally:
            for task in waiting:
                task.cancel()

    def _label(self, actor: str) -> str:
        node = self._seats[actor].node
        home = self._homes.get(node)
        return home.facts.label if home else node

    def _tell(self, text: str) -> None:
        _log.warning("%s", text)  # the run's log takes nothing below
        self._say(text)


async def _plain(call: Awaitable[Any]) -> Any:
    """A call's result; Ray's own errors as ours."""
    try:
        return await remote(call)
    except RayError as error:
        raise EngineError(one_line(error)[:300]) from error
