"""Many requests to one actor in few calls; results come back as they end.

    caller: BatchedCaller                                      actor: BatchedServer
    request -> waits a moment ---- new requests ------>  every request runs by itself
    its own future  <------------- what has ended -----  a call returns when something has

A Ray call costs about a millisecond of CPU on either side, whatever it carries; a dialogue turn
with two calls of its own would keep a core busy at 500 turns/s. So one call at a time is open
between a BatchedCaller and its BatchedServer. It brings new requests, and returns as soon as
something has ended. Requests are not coupled: each has its own task at the actor and its own
future at the caller.

A BatchedCaller with few requests under way sends each at once. With many it paces its calls, so
that a call carries several requests: the pause is a small share of what a request takes anyway.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from stargate.actors.rpc.remote import ActorDied
from stargate.actors.rpc.wire import pack, unpack
from stargate.errors import EngineError, StargateError

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

# With fewer requests than this under way, none is held back: there is little to put together.
_PACED_FROM = 8
# The pause between calls, as a share of what a request takes. At 64 requests under way two or three
# end in it. It costs no throughput: a few more dialogues than an engine has places cover it.
_PACE_SHARE = 0.04
# Calls per second of all callers of a pool: where many are busy they pause for longer, so that
# calls cost less than all else, but not for a larger share of a request than the second figure.
_POOL_CALLS_PER_S = 50
_MAX_PACE_SHARE = 0.1
# Longest pause (seconds), where single requests take very long.
_MAX_PACE = 0.1
# Weight of the newest request in the running mean of what a request takes.
_NEWEST = 0.05
# Ray keeps arguments above 100 kB in its object store, which is slower; a request has 1-2 kB.
_MAX_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class CallBatch(Generic[_Request]):
    """What one call brings. `number` rises with every call of a client."""

    client: str
    number: int
    requests: Sequence[tuple[int, _Request]]  # under the client's own keys
    cancelled: Sequence[int] = ()

    def __reduce__(self) -> Any:
        return _read_batch, (self.client, self.number, pack(self.requests), tuple(self.cancelled))


def _read_batch(client: str, number: int, requests: bytes, cancelled: Sequence[int]) -> Any:
    return CallBatch(client, number, unpack(requests), cancelled)


@dataclass(frozen=True, slots=True)
class Delivery(Generic[_Result]):
    """What one call returns: per ended request its key and its result or error.

    `fatal` says that the actor lives but can't work any more.
    """

    ended: Sequence[tuple[int, _Result | StargateError]]
    fatal: str | None = None

    def __reduce__(self) -> Any:
        return _read_delivery, (pack(self.ended), self.fatal)


def _read_delivery(ended: bytes, fatal: str | None) -> Any:
    return Delivery(unpack(ended), fatal)


class BatchedServer(Generic[_Request, _Result]):
    """The actor's side: `work` does one request; any number run side by side. A coroutine gets a
    task of its own; a future is only waited for.

    A StargateError of a request travels as its value; `fatal` tells whether the actor is beyond
    repair.
    """

    def __init__(
        self,
        work: Callable[[_Request], Awaitable[_Result]],
        fatal: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._work = work
        self._fatal = fatal
        self._clients: dict[str, _Client[_Result]] = {}

    async def exchange(self, batch: CallBatch[_Request]) -> Delivery[_Result]:
        """Takes new requests; returns when some have ended, or at once when the same client calls
        again (the newer call then brings what has ended).
        """
        client = self._clients.get(batch.client) or self._welcome(batch.client)
        for key in batch.cancelled:
            if (task := client.tasks.get(key)) is not None:
                task.cancel()
        for key, request in batch.requests:
            task = client.tasks[key] = asyncio.ensure_future(self._work(request))
            task.add_done_callback(partial(client.end, key))
        return Delivery(await client.next_ended(batch.number), self._fatal())

    def _welcome(self, name: str) -> "_Client[_Result]":
        """A new client. What an earlier one of the same owner asked for is for nobody any more."""
        owner = name.rpartition("/")[0]
        for other in [one for one in self._clients if owner and one.rpartition("/")[0] == owner]:
            for task in list(self._clients.pop(other).tasks.values()):
                task.cancel()
        client = self._clients[name] = _Client()
        return client


class _Client(Generic[_Result]):
    """What runs and what has ended for one caller."""

    def __init__(self) -> None:
        self.tasks: dict[int, asyncio.Future[_Result]] = {}
        self.ended: list[tuple[int, _Result | StargateError]] = []
        self.changed = asyncio.Event()
        self._newest = -1

    def end(self, key: int, task: "asyncio.Future[_Result]") -> None:
        """A request has ended, or was cancelled."""
        del self.tasks[key]
        if not task.cancelled():
            error = task.exception()
            self.ended.append((key, task.result() if error is None else _as_ours(error)))
        self.changed.set()

    async def next_ended(self, number: int) -> list[tuple[int, _Result | StargateError]]:
        self._newest = max(self._newest, number)
        self.changed.set()  # an older call returns
        while number == self._newest and self.tasks and not self.ended:
            self.changed.clear()
            await self.changed.wait()
        if number != self._newest:
            return []
        ended, self.ended = self.ended, []
        return ended


def _as_ours(error: BaseException) -> StargateError:
    """What a request's caller hears, and of this one request only."""
    if isinstance(error, StargateError):
        return error
    return EngineError(f"{type(error).__name__}: {' '.join(str(error).split())}")


class BatchedCaller(Generic[_Request, _Result]):
    """The caller's side: call it with a request and await the result.

    `exchange` is the actor's method of that name, awaited through `remote`. Raises what the request
    raised there; ActorDied when the actor is gone, for this request and all later ones.
    """

    def __init__(
        self,
        exchange: Callable[[CallBatch[_Request]], Awaitable[Delivery[_Result]]],
        owner: str = "",
    ) -> None:
        """Of an owner with a name the actor serves the newest caller only: one whose process has
        died leaves requests behind, and nobody else can take them back.
        """
        self._exchange = exchange
        self._client = f"{owner}/{uuid.uuid4().hex}"
        self._next_key = 0
        self._waiting: dict[int, asyncio.Future[_Result]] = {}
        self._outgoing: dict[int, _Request] = {}
        self._cancelled: list[int] = []
        self._timer: asyncio.Handle | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._mean_seconds = 0.0
        self._lost: ActorDied | None = None
        # How many callers of this one's pool have requests under way.
        self.num_busy: Callable[[], int] = lambda: 1
        self.num_calls = 0
        self.num_requests = 0

    async def __call__(self, request: _Request) -> _Result:
        """The result of one request."""
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        key, self._next_key = self._next_key, self._next_key + 1
        future = self._waiting[key] = loop.create_future()
        self._outgoing[key] = request
        self.num_requests += 1
        self._send_soon()
        started = loop.time()
        try:
            result: _Result = await future
        except asyncio.CancelledError:
            self._withdraw(key)
            raise
        finally:
            self._waiting.pop(key, None)
        self._mean_seconds += _NEWEST * (loop.time() - started - self._mean_seconds)
        return result

    def _withdraw(self, key: int) -> None:
        if self._outgoing.pop(key, None) is None and self._lost is None:
            self._cancelled.append(key)
            self._send_soon()

    def _send_soon(self) -> None:
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if (pause := self._pace()) > 0.0:
            self._timer = loop.call_later(pause, self._send)
        else:
            self._timer = loop.call_soon(self._send)  # with all of this turn of the event loop

    def _pace(self) -> float:
        if len(self._waiting) < _PACED_FROM:
            return 0.0
        pause = max(_PACE_SHARE * self._mean_seconds, self.num_busy() / _POOL_CALLS_PER_S)
        return min(pause, _MAX_PACE_SHARE * self._mean_seconds, _MAX_PACE)

    def _send(self) -> None:
        self._timer = None
        if self._lost is not None:
            return
        keys = list(self._outgoing)[:_MAX_REQUESTS]
        requests = [(key, self._outgoing.pop(key)) for key in keys]
        cancelled, self._cancelled = self._cancelled, []
        if not requests and not cancelled and not self._waiting:
            return
        self.num_calls += 1
        batch = CallBatch(self._client, self.num_calls, requests, cancelled)
        call = asyncio.get_running_loop().create_task(self._call(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        if self._outgoing:
            self._timer = asyncio.get_running_loop().call_soon(self._send)

    async def _call(self, batch: CallBatch[_Request]) -> None:
        try:
            delivery = await self._exchange(batch)
        except Exception as error:  # every waiter must hear it, and none may wait for ever
            self._fail_all(error)
            return
        for key, result in delivery.ended:
            future = self._waiting.get(key)
            if future is None or future.done():
                continue  # it was cancelled meanwhile
            if isinstance(result, StargateError) and delivery.fatal is None:
                future.set_exception(result)
            elif not isinstance(result, StargateError):
                future.set_result(result)
        if delivery.fatal is not None:
            self._fail_all(ActorDied(delivery.fatal))
        elif batch.number == self.num_calls and any(not f.done() for f in self._waiting.values()):
            self._send_soon()

    def _fail_all(self, error: Exception) -> None:
        if isinstance(error, ActorDied):
            self._lost = error
        self._outgoing.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
