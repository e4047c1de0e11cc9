"""What the Oracle costs: estimated before, capped before each call, metered after.

    reserve (room under max_cost?) -> the call -> settle (what it cost) | release (not billed) |
    lose (perhaps billed)

Money is counted in whole billionths ("nanos") of the price table's currency, so sums are exact
whatever their order. Meter and reservations live in the cache's database: they survive restarts and
hold for all processes that write the same output. A call whose process died before its answer was
kept counts as paid, because it may have been.
"""

import asyncio
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stargate.config.oracle import CostConfig, PriceConfig
from stargate.errors import BudgetError, ConfigError
from stargate.oracle.cache import KEY_LOCKS
from stargate.oracle.database import Database
from stargate.oracle.records import ChatRequest, Usage

NANOS = 1_000_000_000
# How often to look whether calls in flight have settled (s), and whether their processes still
# live.
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a set of requests would take. `money` is an upper bound at typical prompt lengths: all
    answers as long as they may be; None where a price is missing. Duplicates within the set count
    as cached."""

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None


@dataclass(frozen=True, slots=True)
class Meter:
    """What was paid so far for one output, over all runs.

    `lost_*` are calls that may have been billed although no answer arrived (time-outs, cut
    connections, killed processes). `unpriced_calls` had no price: their cost is not in `money`.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    unpriced_calls: int
    lost_calls: int
    lost_money: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one call."""

    id: int
    nanos: int


def nanos_of(usage: Usage, price: PriceConfig | None) -> int | None:
    """The cost of one call, rounded up to a whole nano; None without a price."""
    if price is None:
        return None
    # Nanos per million tokens, rounded up: a price such as 0.15 has no exact binary form.
    prompt = math.ceil(round(price.input_per_million * NANOS, 3))
    completion = math.ceil(round(price.output_per_million * NANOS, 3))
    per_million = usage.prompt_tokens * prompt + usage.completion_tokens * completion
    return -(-per_million // 1_000_000)


def typical_usage(request: ChatRequest) -> Usage:
    """Tokens to expect: the prompt by its length, the answer as long as it may be."""
    # English text has about 4 bytes per token.
    return _usage(request, bytes_per_token=4, per_message=5, template=8)


def highest_usage(request: ChatRequest) -> Usage:
    """Tokens that the call can't exceed: byte-level tokenizers never make more than one of a
    byte.
    """
    return _usage(request, bytes_per_token=1, per_message=16, template=128)


def _usage(request: ChatRequest, bytes_per_token: int, per_message: int, template: int) -> Usage:
    """`per_message` and `template`: tokens that chat templates put around each message, and around
    all of them (default system prompts).
    """
    text = "".join(message.text for message in request.messages)
    text += request.schema.text if request.schema else ""
    prompt = -(-len(text.encode()) // bytes_per_token)
    prompt += template + per_message * len(request.messages)
    return Usage(prompt, request.max_tokens, estimated=True)


def estimate(
    requests: Iterable[tuple[ChatRequest, bool]], prices: Mapping[str, PriceConfig]
) -> Estimate:
    """Sums up (request, whether it is cached). Takes them one by one: there may be many."""
    calls = cached = prompt_tokens = completion_tokens = nanos = 0
    priced = True
    for request, is_cached in requests:
        if is_cached:
            cached += 1
            continue
        usage = typical_usage(request)
        calls += 1
        prompt_tokens += usage.prompt_tokens
        completion_tokens += usage.completion_tokens
        cost = nanos_of(usage, prices.get(request.model))
        priced = priced and cost is not None
        nanos += cost or 0
    return Estimate(
        calls, cached, prompt_tokens, completion_tokens, nanos / NANOS if priced else None
    )


class Ledger:
    """The meter and the reservations of one Database."""

    def __init__(self, database: Database, config: CostConfig) -> None:
        self.prices = config.prices
        self._database = database
        self._cap = None if config.max_cost is None else round(config.max_cost * NANOS)
        # Only who reserves needs a name; its lock shows others that this process lives. Nobody else
        # has a new number.
        self._session = 0 if self._cap is None else database.run(_new_session)
        if self._session:
            database.locks.try_lock(KEY_LOCKS + self._session)

    async def reserve(self, request: ChatRequest) -> Reservation | None:
        """Sets aside what one call can cost at most; None without a cap. Waits for calls in flight
        to settle.

        Raises BudgetError if the call could exceed max_cost even then, ConfigError for a model
        without a price.
        """
        if self._cap is None:
            return None
        nanos = nanos_of(highest_usage(request), self.prices.get(request.model))
        if nanos is None:
            raise ConfigError(
                f"cost.max_cost needs a price for the model {request.model!r} in cost.prices"
            )
        cap = self._cap

        def operation(connection: sqlite3.Connection) -> tuple[int | None, int]:
            """(id of the reservation or None, what is paid)"""
            paid, held = connection.execute(
                "SELECT (SELECT coalesce(sum(nanos), 0) FROM meter), "
                "(SELECT coalesce(sum(nanos), 0) FROM reservations)"
            ).fetchone()
            if paid + held + nanos > cap:
                return None, paid
            row = connection.execute(
                "INSERT INTO reservations (session, model, nanos) VALUES (?, ?, ?)",
                (self._session, request.model, nanos),
            )
            return row.lastrowid, paid

        while True:
            reserved, paid = await self._database.submit(operation)
            if reserved is not None:
                return Reservation(reserved, nanos)
            if paid + nanos > cap:
                raise BudgetError(
                    f"{request.where}: {paid / NANOS:.6g} is paid and the next call could cost "
                    f"{nanos / NANOS:.6g}, more than cost.max_cost = {cap / NANOS:.6g}; raise "
                    "it to go on, what is answered is kept"
                )
            await self._database.submit(self._sweep)
            await asyncio.sleep(_POLL_S)

    def settle(
        self, connection: sqlite3.Connection, model: str, usage: Usage, held: Reservation | None
    ) -> int | None:
        """Meters a call in the transaction that keeps its answer. Returns its nanos."""
        nanos = nanos_of(usage, self.prices.get(model))
        if usage.estimated and held is not None:
            # Nobody says what it cost: a cap that is to hold must think the worst.
            nanos = held.nanos
        _meter(connection, model, 1, usage, nanos)
        _drop(connection, held)
        return nanos

    def release(self, held: Reservation | None) -> None:
        """The call was not billed (refused, no connection)."""
        if held is not None:
            self._database.submit(lambda connection: _drop(connection, held))

    def lose(self, request: ChatRequest, held: Reservation | None) -> None:
        """The call may have been billed, but no answer came: it counts as paid."""
        usage = typical_usage(request)
        nanos = held.nanos if held else nanos_of(usage, self.prices.get(request.model))

        def operation(connection: sqlite3.Connection) -> None:
            _meter(connection, request.model, 0, usage, nanos)
            _drop(connection, held)

        self._database.submit(operation)

    def recover(self) -> None:
        """Counts what died with other processes as paid."""
        self._database.run(self._sweep)

    def carry_on(self, model: str, before: Meter) -> None:
        """Begins a new meter where one on another machine stood."""

        def operation(connection: sqlite3.Connection) -> None:
            paid = (before.prompt_tokens, before.completion_tokens, before.money)
            for confirmed, calls, (prompt, completion, money), unpriced in (
                (1, before.calls, paid, before.unpriced_calls),
                (0, before.lost_calls, (0, 0, before.lost_money), 0),
            ):
                connection.execute(
                    "INSERT INTO meter VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (model, confirmed, calls, prompt, completion, round(money * NANOS), unpriced),
                )

        self._database.run(operation)

    def read(self) -> Meter:
        """The meter as it stands on the disk."""
        [(calls, prompt, completion, nanos, unpriced, lost_calls, lost_nanos)] = (
            self._database.read(
                "SELECT sum(calls * confirmed), sum(prompt_tokens * confirmed), "
                "sum(completion_tokens * confirmed), sum(nanos * confirmed), sum(unpriced_calls), "
                "sum(calls * (1 - confirmed)), sum(nanos * (1 - confirmed)) FROM meter"
            )
        )
        if calls is None:  # sums over nothing
            return Meter(0, 0, 0, 0.0, 0, 0, 0.0)
        money, lost_money = nanos / NANOS, lost_nanos / NANOS
        return Meter(calls, prompt, completion, money, unpriced, lost_calls, lost_money)

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """Turns the reservations of sessions that are gone into lost calls."""
        rows = connection.execute(
            "SELECT DISTINCT session FROM reservations WHERE session != ?", (self._session,)
        ).fetchall()
        for (session,) in rows:
            if not self._database.locks.try_lock(KEY_LOCKS + session):
                continue  # its process lives
            held = connection.execute(
                "DELETE FROM reservations WHERE session = ? RETURNING model, nanos", (session,)
            ).fetchall()
            for model, nanos in held:
                _meter(connection, model, 0, Usage(0, 0), nanos)
            self._database.locks.unlock(KEY_LOCKS + session)


def _new_session(connection: sqlite3.Connection) -> int:
    row = connection.execute("INSERT INTO sessions (started) VALUES (?)", (time.time(),))
    if row.lastrowid is None:
        raise AssertionError("SQLite inserted a row without an id")
    return row.lastrowid


def _meter(
    connection: sqlite3.Connection, model: str, confirmed: int, usage: Usage, nanos: int | None
) -> None:
    connection.execute(
        "INSERT INTO meter VALUES (?, ?, 1, ?, ?, ?, ?) "
        "ON CONFLICT (model, confirmed) DO UPDATE SET "
        "calls = calls + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
        "completion_tokens = completion_tokens + excluded.completion_tokens, "
        "nanos = nanos + excluded.nanos, unpriced_calls = unpriced_calls + excluded.unpriced_calls",
        (
            *(model, confirmed, usage.prompt_tokens, usage.completion_tokens),
            *(nanos or 0, nanos is None),
        ),
    )


def _drop(connection: sqlite3.Connection, held: Reservation | None) -> None:
    if held is not None:
        connection.execute("DELETE FROM reservations WHERE id = ?", (held.id,))
