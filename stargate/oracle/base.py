"""What every Oracle does around the asking itself: cache, one call per request, bounded
concurrency, statuses.

    complete -> stored? -> in flight here? -> slot -> in flight in another process? -> _ask
    (client.py, local.py)
             <- ChatResult <- classify <- stored on disk <-------------------------------- Reply or
             NoReply
"""

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from stargate.config.oracle import CostConfig
from stargate.errors import StargateError
from stargate.oracle.answers import classify, explain
from stargate.oracle.cache import AnswerCache
from stargate.oracle.cost import NANOS, Estimate, Ledger, Meter, Reservation, estimate
from stargate.oracle.database import Database
from stargate.oracle.keys import canonical_json, canonical_request, request_body, request_key
from stargate.oracle.records import ChatRequest, ChatResult, Complete, NoReply, Reply


@dataclass(frozen=True, slots=True)
class Question:
    """A request with all that is derived from it once."""

    request: ChatRequest
    body: str  # what is sent
    canonical: str
    key: bytes


class CachedOracle(ABC):
    """Answers requests, each at most once ever; without `caches`, whenever it is asked. Use it as
    an async context manager, within one event loop.

    `counts` tells how many results had which status, and how many were "cached"; retries are
    counted as "retry_<why>". `identity` names who answers, and is part of each cache key.
    """

    def __init__(
        self,
        identity: str,
        cache_path: str | Path,
        *,
        max_concurrency: int,
        refusal_patterns: Iterable[str],
        cost: CostConfig,
        max_tokens_parameter: str = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        caches: bool = True,
    ) -> None:
        self.identity = identity
        self.counts: Counter[str] = Counter()
        self._max_tokens_parameter = max_tokens_parameter
        self._extra_body = dict(extra_body or {})
        self._refusals = tuple(refusal_patterns)
        self._database = Database(Path(cache_path))
        self.cache = AnswerCache(self._database)
        self._caches = caches
        self._ledger = Ledger(self._database, cost)
        self._ledger.recover()
        self._slots = asyncio.Semaphore(max_concurrency)
        self._flights: dict[bytes, asyncio.Task[ChatResult]] = {}
        self._stopped: StargateError | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity}, cache={str(self._database.path)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels what is in flight, writes what is waiting, closes the cache. Idempotent."""
        if self._closed:
            return
        self._closed = True
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._disconnect()
        await asyncio.to_thread(self._database.close)

    async def complete(self, request: ChatRequest) -> ChatResult:
        """The answer to one request: from the cache, from a call already in flight, or from a new
        one.

        What goes wrong with this request alone (refused, cut off, no answer in time) is the
        result's status. What would go wrong with all of them raises: OracleError (key, model,
        address), BudgetError, EngineError. A caller that is cancelled leaves its call in flight, so
        that what is paid is kept; `aclose` ends those.
        """
        question = self._question(request)
        if not self._caches:
            return self._counted(await self._fly(question))
        stored = self.cache.get(question.key)
        if stored is not None:
            return self._counted(self._result(question, stored, cached=True))
        flight = self._flights.get(question.key)
        if flight is not None:
            result = await asyncio.shield(flight)
            if result.usage is not None:  # there is an answer, and the other caller paid for it
                result = replace(result, cached=True, cost=0.0)
            return self._counted(result)
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        flight = asyncio.create_task(self._fly(question))
        self._flights[question.key] = flight
        flight.add_done_callback(lambda done: self._land(question.key, done))
        return self._counted(await asyncio.shield(flight))

    def estimate(self, requests: Iterable[ChatRequest]) -> Estimate:
        """What these requests would take beyond what is stored. Calls nothing and needs no key."""
        return estimate(self._with_cached(requests), self._ledger.prices)

    def carry_on(self, model: str, before: Meter) -> None:
        """Begins a new meter where one on another machine stood."""
        self._ledger.carry_on(model, before)

    def meter(self) -> Meter:
        """What this output has cost so far, in all its runs."""
        return self._ledger.read()

    @abstractmethod
    async def _ask(self, question: Question) -> tuple[Reply, Reservation | None] | NoReply:
        """Gets a reply from whoever answers. Raises StargateError where going on makes no sense."""

    async def _disconnect(self) -> None:
        """Closes connections, once."""
        return

    def _stop(self, error: StargateError) -> StargateError:
        """From now on nothing more is asked: each further request raises this error."""
        self._stopped = self._stopped or error
        return error

    def _raise_if_stopped(self) -> None:
        if self._stopped is not None:
            # A new one each time: one exception raised in many tasks would grow one endless
            # traceback.
            raise type(self._stopped)(str(self._stopped))

    def _question(self, request: ChatRequest) -> Question:
        body = canonical_json(request_body(request, self._max_tokens_parameter, self._extra_body))
        canonical = canonical_request(self.identity, body)
        return Question(request, body, canonical, request_key(canonical, request.where))

    async def _fly(self, question: Question) -> ChatResult:
        async with self._slots:
            self._raise_if_stopped()
            if not self._caches:
                return await self._answer(question)
            async with self.cache.claim(question.key):
                # Another process may have answered between our first look and the claim.
                stored = self.cache.get(question.key)
                if stored is not None:
                    return self._result(question, stored, cached=True)
                return await self._answer(question)

    async def _answer(self, question: Question) -> ChatResult:
        request = question.request
        outcome = await self._ask(question)
        if isinstance(outcome, NoReply):
            return ChatResult(
                outcome.status, "", None, None, False, question.key.hex(), outcome.detail
            )
        kept, held = outcome

        def settle(connection: sqlite3.Connection) -> int | None:
            return self._ledger.settle(connection, request.model, kept.usage, held)

        try:
            if self._caches:
                kept, nanos = await self.cache.store(
                    question.key, question.canonical, request, kept, settle
                )
            else:
                nanos = await self._database.submit(settle)
        except StargateError as error:
            # The disk is full, or worse: answers that can't be kept must not be paid for.
            raise self._stop(error) from None
        return self._result(question, kept, cost=None if nanos is None else nanos / NANOS)

    def _result(
        self, question: Question, reply: Reply, *, cost: float | None = 0.0, cached: bool = False
    ) -> ChatResult:
        request, key = question.request, question.key.hex()
        status, text = classify(reply, request, self._refusals)
        detail = explain(status, reply, request)
        return ChatResult(status, text, reply.usage, cost, cached, key, detail)

    def _counted(self, result: ChatResult) -> ChatResult:
        self.counts[result.status.value] += 1
        self.counts["cached"] += result.cached
        return result

    def _land(self, key: bytes, flight: "asyncio.Task[ChatResult]") -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # mark it as seen: its callers raise it, if any are left

    def _with_cached(self, requests: Iterable[ChatRequest]) -> Iterable[tuple[ChatRequest, bool]]:
        seen: set[bytes] = set()  # 32 bytes each: small beside the requests
        for request in requests:
            key = self._question(request).key
            yield request, key in seen or self.cache.get(key) is not None
            seen.add(key)


async def stream(
    oracle: Complete, requests: Iterable[ChatRequest], width: int
) -> AsyncIterator[tuple[ChatRequest, ChatResult]]:
    """Completes requests as they come, at most `width` at a time, and yields each when it is done.

    Memory does not grow with their number: no request is drawn before there is room for it.
    """
    source = iter(requests)
    pending: dict[asyncio.Task[ChatResult], ChatRequest] = {}
    exhausted = False
    try:
        while True:
            while not exhausted and len(pending) < width:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                pending[asyncio.create_task(oracle.complete(request))] = request
            if not pending:
                return
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield pending.pop(task), task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
