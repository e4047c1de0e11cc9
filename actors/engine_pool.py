"""Several actors that do the same, as one callable: the engines of a role, as one Generate.

    request -> the session's replica (its prefix cache), a new session: the least loaded
            -> mailbox of that replica -> text
    a replica dies -> its requests go to another one, or to the replica that takes its place

Requests are stateless (prompt ids and a seed), so one that was under way on a dead replica is sent
again as it is.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stargate.actors.mailbox import Delivery, Mailbox, Parcel
from stargate.actors.remote import ActorDied, remote
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

    mailbox: Mailbox[_Request, _Result] | None
    num_in_flight: int = 0
    replacing: asyncio.Task[None] | None = None


class ReplicaPool(Generic[_Request, _Result]):
    """Actors with an `exchange` (mailbox.py) that are as good as each other.

    `home`: the replicas that this caller uses while one of them lives; several callers that share
    the replicas out among themselves send fewer, fuller calls. Without `replace` a dead replica is
    an ActorDied for whoever awaits it. With it, requests go on as long as a replica lives or one is
    being replaced.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        session: Callable[[_Request], str],
        home: Sequence[int] | None = None,
        replace: Replace | None = None,
    ) -> None:
        self._replicas: list[_Replica[_Request, _Result]] = [_Replica(_mailbox(a)) for a in actors]
        self._session = session
        self._home = list(range(len(actors))) if home is None else list(home)
        self._replace = replace
        self._sessions: OrderedDict[str, int] = OrderedDict()
        self._not_replaced: Exception | None = None  # why, the last time that it failed
        self._num_past_calls = 0  # of replicas that are gone
        self.num_requests = 0
        self.num_resent = 0
        self.num_replaced = 0

    @property
    def num_calls(self) -> int:
        """Ray calls so far."""
        living = (replica.mailbox for replica in self._replicas)
        return self._num_past_calls + sum(m.num_calls for m in living if m is not None)

    async def __call__(self, request: _Request) -> _Result:
        """What the session's replica makes of a request. Raises what it raises there, or
        EngineError when no replica can do it.
        """
        self.num_requests += 1
        session = self._session(request)
        for _ in range(_MAX_RESENDS + 1):
            number, mailbox = await self._choose(session)
            try:
                with self._counted(number):
                    return await mailbox(request)
            except ActorDied as error:
                if self._replace is None:
                    raise
                self._bury(number, mailbox, error)
                self.num_resent += 1
                last = error
        raise EngineError(
            f"{session}: {_MAX_RESENDS + 1} actors died while they worked on it; the last: {last}"
        ) from last

    async def _choose(self, session: str) -> tuple[int, Mailbox[_Request, _Result]]:
        """A living replica. Waits for a replacement when there is none; raises EngineError when
        there will be none.
        """
        while True:
            number = self._sessions.get(session)
            if number is None or self._replicas[number].mailbox is None:
                number = self._least_loaded()
            if number is not None and (mailbox := self._replicas[number].mailbox) is not None:
                self._remember(session, number)
                return number, mailbox
            if self._not_replaced is not None and not isinstance(self._not_replaced, StargateError):
                raise self._not_replaced
            coming = {r.replacing for r in self._replicas if r.replacing is not None}
            if not coming:
                raise EngineError(
                    f"no replica is left, and none could be replaced: {self._not_replaced}"
                ) from self._not_replaced
            await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)

    def _least_loaded(self) -> int | None:
        """A living replica, of this caller's own as long as there is one."""
        living = [n for n in self._home if self._replicas[n].mailbox is not None]
        living = living or [n for n, r in enumerate(self._replicas) if r.mailbox is not None]
        return min(living, key=lambda n: self._replicas[n].num_in_flight, default=None)

    def _remember(self, session: str, number: int) -> None:
        self._sessions[session] = number
        self._sessions.move_to_end(session)
        if len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)

    @contextlib.contextmanager
    def _counted(self, number: int) -> Iterator[None]:
        self._replicas[number].num_in_flight += 1
        try:
            yield
        finally:
            self._replicas[number].num_in_flight -= 1

    def _bury(
        self,
        number: int,
        mailbox: Mailbox[_Request, _Result],
        error: EngineError,
    ) -> None:
        """Takes a dead actor out and asks for another, once for all of its requests."""
        replica = self._replicas[number]
        if replica.mailbox is not mailbox:
            return
        self._num_past_calls += mailbox.num_calls
        replica.mailbox = None
        replica.replacing = asyncio.create_task(self._renew(number, error))

    async def _renew(self, number: int, error: EngineError) -> None:
        assert self._replace is not None
        replica = self._replicas[number]
        try:
            actor = await self._replace(number, error)
        except Exception as problem:  # the others go on; who waits with none left raises it
            self._not_replaced = problem
        else:
            replica.mailbox = _mailbox(actor)
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
    ) -> None:
        super().__init__(engines, lambda request: request.session, home, replace)


def share_of(worker: int, num_workers: int, num_replicas: int) -> list[int]:
    """The home of one of several callers: replicas in turn; one that is shared if there are fewer
    replicas than callers.
    """
    own = list(range(worker, num_replicas, num_workers))
    return own or [worker % num_replicas]


def _mailbox(actor: Any) -> Mailbox[_Request, _Result]:
    async def exchange(parcel: Parcel[_Request]) -> Delivery[_Result]:
        delivery: Delivery[_Result] = await remote(actor.exchange.remote(parcel))
        return delivery

    return Mailbox(exchange)
