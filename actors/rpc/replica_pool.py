"""Several actors that do the same, as one callable: the engines of a role, as one Generate.

    request -> the session's replica (its prefix cache), a new session: the least loaded
            -> caller of that replica -> text
    a replica dies -> its requests go to another one, or to the replica that takes its place
    join           -> a place more, for new sessions
    leave          -> a place less: its sessions move to the others, what it has under way it ends

Requests are stateless (prompt ids and a seed), so one that was under way on a dead replica is sent
again as it is.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from stargate.actors.rpc.batched_calls import BatchedCaller, CallBatch, Delivery
from stargate.actors.rpc.remote import ActorDied, remote
from stargate.errors import EngineError, StargateError
from stargate.types import GenerateRequest, Generation

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

# Brings a new actor in the place of a dead one: (number, what ended it) -> handle.
Replace = Callable[[int, EngineError], Awaitable[Any]]

# Sessions that a pool remembers. Far more than are in flight; an old one only loses its prefix
# cache.
_MAX_SESSIONS = 65_536
# How often one request is sent again. One that ends this many actors may well be what ends them.
_MAX_RESENDS = 3


@dataclass
class _Replica(Generic[_Request, _Result]):
    """One place of the pool and the actor that stands there now. None: dead, not replaced."""

    caller: BatchedCaller[_Request, _Result] | None
    num_in_flight: int = 0
    replacing: asyncio.Task[None] | None = None
    leaving: bool = False  # no place of the pool any more; it ends what it has
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # a leaving one has nothing left


class ReplicaPool(Generic[_Request, _Result]):
    """Actors with an `exchange` (batched_calls.py) that are as good as each other.

    `home`: the replicas that this caller uses while one of them lives (None: all); several callers
    that share the replicas out among themselves send fewer, fuller calls. Without `replace` a dead
    replica is an ActorDied for whoever awaits it. With it, requests go on as long as a replica
    lives or one is being replaced.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        session: Callable[[_Request], str],
        home: Sequence[int] | None = None,
        replace: Replace | None = None,
        owner: str = "",
    ) -> None:
        """`owner` names a caller that may die, and come back under it: see BatchedCaller."""
        self._owner = owner
        self._replicas: list[_Replica[_Request, _Result]] = [
            _Replica(self._caller(actor)) for actor in actors
        ]
        self._session = session
        self.home = home
        self._joined = asyncio.Event()
        self._replace = replace
        self._sessions: OrderedDict[str, int] = OrderedDict()
        self._not_replaced: Exception | None = None  # why, the last time that it failed
        self._num_past_calls = 0  # of replicas that are gone
        self.num_requests = 0
        self.num_resent = 0
        self.on_resend: Callable[[], None] = lambda: None
        self.num_replaced = 0

    @property
    def num_replicas(self) -> int:
        """Places, with an actor or waiting for one; those that leave are none."""
        return len(self._replicas)

    def join(self, actor: Any) -> None:
        """One more replica. It must be ready: requests may come at once."""
        self._replicas.append(_Replica(self._caller(actor)))
        self._joined.set()

    def leave(self) -> Awaitable[None]:
        """The last replica gets no more requests from now on. Awaited: it has ended what it had.

        If it dies before that, the others do the rest.
        """
        replica, number = self._replicas.pop(), len(self._replicas)
        replica.leaving = True
        for session in [s for s, where in self._sessions.items() if where == number]:
            del self._sessions[session]  # or a replica that joins later would get it
        return self._left(replica)

    async def _left(self, replica: _Replica[_Request, _Result]) -> None:
        if replica.num_in_flight:
            await replica.ended.wait()
        if replica.caller is not None:
            self._num_past_calls += replica.caller.num_calls
            replica.caller = None

    @property
    def num_calls(self) -> int:
        """Ray calls so far."""
        living = (replica.caller for replica in self._replicas)
        return self._num_past_calls + sum(m.num_calls for m in living if m is not None)

    async def __call__(self, request: _Request) -> _Result:
        """What the session's replica makes of a request. Raises what it raises there, or
        EngineError when no replica can do it.
        """
        self.num_requests += 1
        session = self._session(request)
        for _ in range(_MAX_RESENDS + 1):
            replica, caller = await self._choose(session)
            replica.num_in_flight += 1
            try:
                return await caller(request)
            except ActorDied as error:
                if self._replace is None and not replica.leaving:
                    raise
                self._bury(replica, caller, error)
                self.num_resent += 1
                self.on_resend()
                last = error
            finally:
                replica.num_in_flight -= 1
                if not replica.num_in_flight:
                    replica.ended.set()
        raise EngineError(
            f"{session}: {_MAX_RESENDS + 1} actors died while they worked on it; the last: {last}"
        ) from last

    async def _choose(
        self, session: str
    ) -> tuple[_Replica[_Request, _Result], BatchedCaller[_Request, _Result]]:
        """A living replica. Waits for a replacement when there is none; raises EngineError when
        there will be none.
        """
        while True:
            number = self._sessions.get(session)
            if number is None or self._replicas[number].caller is None:
                number = self._least_loaded()
            if number is not None and (caller := self._replicas[number].caller) is not None:
                self._remember(session, number)
                return self._replicas[number], caller
            if self._not_replaced is not None and not isinstance(self._not_replaced, StargateError):
                raise self._not_replaced
            coming = {r.replacing for r in self._replicas if r.replacing is not None}
            if not coming:
                raise EngineError(
                    f"no replica is left, and none could be replaced: {self._not_replaced}"
                ) from self._not_replaced
            await self._change(coming)

    async def _change(self, coming: set[asyncio.Task[None]]) -> None:
        """Returns when a replacement has come, or failed to, or another replica has joined."""
        self._joined.clear()
        joining = asyncio.create_task(self._joined.wait())
        try:
            await asyncio.wait({*coming, joining}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            joining.cancel()

    def _least_loaded(self) -> int | None:
        """A living replica, of this caller's own as long as there is one."""
        living = [n for n, r in enumerate(self._replicas) if r.caller is not None]
        living = [n for n in living if self.home is None or n in self.home] or living
        return min(living, key=lambda n: self._replicas[n].num_in_flight, default=None)

    def _caller(self, actor: Any) -> BatchedCaller[_Request, _Result]:
        async def exchange(batch: CallBatch[_Request]) -> Delivery[_Result]:
            delivery: Delivery[_Result] = await remote(actor.exchange.remote(batch))
            return delivery

        caller: BatchedCaller[_Request, _Result] = BatchedCaller(exchange, self._owner)
        caller.num_busy = lambda: sum(replica.num_in_flight > 0 for replica in self._replicas)
        return caller

    def _remember(self, session: str, number: int) -> None:
        self._sessions[session] = number
        self._sessions.move_to_end(session)
        if len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def _bury(
        self,
        replica: _Replica[_Request, _Result],
        caller: BatchedCaller[_Request, _Result],
        error: EngineError,
    ) -> None:
        """Takes a dead actor out and asks for another, once for all of its requests; not for one
        that was leaving.
        """
        if replica.caller is not caller:
            return
        self._num_past_calls += caller.num_calls
        replica.caller = None
        if not replica.leaving:
            number = next(n for n, one in enumerate(self._replicas) if one is replica)
            replica.replacing = asyncio.create_task(self._renew(replica, number, error))

    async def _renew(
        self, replica: _Replica[_Request, _Result], number: int, error: EngineError
    ) -> None:
        assert self._replace is not None
        try:
            actor = await self._replace(number, error)
        except Exception as problem:  # the others go on; who waits with none left raises it
            if not replica.leaving or not isinstance(problem, StargateError):
                self._not_replaced = problem
        else:
            replica.caller = self._caller(actor)
            self.num_replaced += 1
        finally:
            replica.replacing = None


class EnginePool(ReplicaPool[GenerateRequest, Generation]):
    """The engines of one role: a Generate. A dialogue sticks to one engine, for its prefix cache.

    Raises RecordDropped for a request at fault, else EngineError.
    """

    def __init__(
        self,
        engines: Sequence[Any],
        home: Sequence[int] | None = None,
        replace: Replace | None = None,
        owner: str = "",
    ) -> None:
        super().__init__(engines, lambda request: request.session, home, replace, owner)


def share_of(worker: int, num_workers: int, num_replicas: int) -> list[int]:
    """The home of one of several callers: replicas in turn; one that is shared if there are fewer
    replicas than callers.
    """
    own = list(range(worker, num_replicas, num_workers))
    return own or [worker % num_replicas]
