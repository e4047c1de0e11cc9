"""Money: arithmetic, estimate, the cap before each call, the meter after it."""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from stargate.config.oracle import CostConfig, PriceConfig
from stargate.errors import BudgetError, ConfigError
from stargate.oracle.cost import (
    Estimate,
    Ledger,
    Meter,
    Reservation,
    estimate,
    highest_usage,
    nanos_of,
    typical_usage,
)
from stargate.oracle.database import Database
from stargate.oracle.records import ChatRequest, JsonSchema, Usage, chat
from tests.unit.oracle.test_cache import run_and_die

T = TypeVar("T")
MINI = PriceConfig(input_per_million=0.15, output_per_million=0.6)
PRICES = {"mini": MINI, "big": PriceConfig(input_per_million=10, output_per_million=30)}


def request(text: str = "hi", model: str = "mini", max_tokens: int = 100) -> ChatRequest:
    return ChatRequest(chat(("user", text)), model, max_tokens)


@pytest.mark.parametrize(
    ("model", "usage", "nanos"),
    [
        ("mini", Usage(1_000_000, 0), 150_000_000),
        ("mini", Usage(0, 1_000_000), 600_000_000),
        ("mini", Usage(1, 0), 150),
        ("mini", Usage(612, 297), 612 * 150 + 297 * 600),
        ("big", Usage(3, 2), 90_000),
        ("mini", Usage(0, 0), 0),
        ("unknown", Usage(1, 1), None),
    ],
)
def test_cost_of_one_call(model: str, usage: Usage, nanos: int | None) -> None:
    assert nanos_of(usage, PRICES.get(model)) == nanos


def test_fractions_of_a_nano_are_rounded_up() -> None:
    price = PriceConfig(input_per_million=0.0375, output_per_million=0)
    assert nanos_of(Usage(1, 0), price) == 38
    assert nanos_of(Usage(2, 0), price) == 75
    assert nanos_of(Usage(1_000_000, 0), price) == 37_500_000


def test_token_estimates() -> None:
    # 8 around all, 5 around each message, 4 bytes a token; at most: 128, 16, and a token for each
    # byte.
    assert typical_usage(request("x" * 41)) == Usage(8 + 5 + 11, 100, estimated=True)
    assert highest_usage(request("é" * 10)) == Usage(128 + 16 + 20, 100, estimated=True)
    with_schema = ChatRequest(
        chat(("user", "x" * 4)), "m", 7, schema=JsonSchema("s", '{"type":"object"}')
    )
    assert typical_usage(with_schema).prompt_tokens == 8 + 5 + 6
    assert highest_usage(with_schema).prompt_tokens == 128 + 16 + 4 + 17


def test_estimate_sums_up_what_is_not_cached() -> None:
    asked = [(request("x" * 40), False), (request("y" * 40), True), (request("z" * 80), False)]
    assert estimate(asked, PRICES) == Estimate(
        calls=2, cached=1, prompt_tokens=23 + 33, completion_tokens=200, money=0.0001284
    )
    assert estimate([], PRICES).money == 0
    assert estimate([(request(model="unknown"), False)], PRICES).money is None
    assert estimate([(request(model="unknown"), True)], PRICES).money == 0


async def with_ledger(
    path: Path, max_cost: float | None, work: Callable[[Ledger], Awaitable[T]]
) -> T:
    database = Database(path)
    try:
        return await work(Ledger(database, CostConfig(prices=PRICES, max_cost=max_cost)))
    finally:
        await asyncio.to_thread(database.close)


def settled(ledger: Ledger, usage: Usage, held: Reservation | None) -> "asyncio.Future[int | None]":
    return ledger._database.submit(
        lambda connection: ledger.settle(connection, "mini", usage, held)
    )


def test_meter_survives_restarts(tmp_path: Path) -> None:
    async def pay(ledger: Ledger) -> None:
        assert await settled(ledger, Usage(1000, 100), None) == 210_000

    for _ in range(3):
        asyncio.run(with_ledger(tmp_path / "c.sqlite", None, pay))

    async def read(ledger: Ledger) -> Meter:
        ledger.lose(request("x" * 40, max_tokens=10), None)
        await ledger._database.submit(lambda connection: None)  # behind it in the queue
        return ledger.read()

    meter = asyncio.run(with_ledger(tmp_path / "c.sqlite", None, read))
    assert meter == Meter(
        calls=3,
        prompt_tokens=3000,
        completion_tokens=300,
        money=0.00063,
        unpriced_calls=0,
        lost_calls=1,
        lost_money=(23 * 150 + 10 * 600) / 1e9,
    )


def test_cap_counts_calls_in_flight_and_settles_to_the_real_price(tmp_path: Path) -> None:
    # "hi" costs at most (128 + 16 + 2) x 150 + 100 x 600 = 81,900 nanos: two fit into 200,000,
    # three do not.
    async def work(ledger: Ledger) -> None:
        first = await ledger.reserve(request())
        second = await ledger.reserve(request())
        assert first is not None and second is not None
        assert (first.nanos, second.nanos) == (81_900, 81_900)
        third = asyncio.ensure_future(ledger.reserve(request()))
        await asyncio.sleep(0.25)
        assert not third.done()  # it waits, for the calls in flight may turn out cheaper
        await settled(ledger, Usage(100, 10), first)  # 21,000
        held = await asyncio.wait_for(third, 5)
        assert held is not None
        ledger.release(second)
        await settled(ledger, Usage(100, 150), held)  # 105,000: more than thought counts as well
        with pytest.raises(BudgetError) as caught:
            await ledger.reserve(request())
        assert str(caught.value) == (
            "request: 0.000126 is paid and the next call could cost 8.19e-05, more than "
            "cost.max_cost = 0.0002; raise it to go on, what is answered is kept"
        )
        assert ledger.read().money == 0.000126

    asyncio.run(with_ledger(tmp_path / "c.sqlite", 0.0002, work))


def test_without_reported_usage_the_whole_reservation_is_paid(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        held = await ledger.reserve(request())
        assert await settled(ledger, Usage(10, 1, estimated=True), held) == 81_900

    asyncio.run(with_ledger(tmp_path / "c.sqlite", 1.0, work))


def test_unknown_model_with_a_cap_is_a_config_error(tmp_path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        with pytest.raises(ConfigError, match="needs a price for the model 'gpt-x'"):
            await ledger.reserve(request(model="gpt-x"))

    asyncio.run(with_ledger(tmp_path / "c.sqlite", 1.0, work))


def _reserve_and_die(path: Path) -> None:
    async def work(ledger: Ledger) -> None:
        await ledger.reserve(request())
        os._exit(9)

    asyncio.run(with_ledger(path, 1.0, work))


def test_what_died_in_flight_counts_as_paid(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    run_and_die(_reserve_and_die, path)

    async def work(ledger: Ledger) -> Meter:
        ledger.recover()
        return ledger.read()

    meter = asyncio.run(with_ledger(path, 1.0, work))
    assert (meter.calls, meter.lost_calls, meter.lost_money) == (0, 1, 81_900 / 1e9)


def test_reservations_of_a_living_session_stay(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"

    async def other(ledger: Ledger) -> Meter:
        ledger.recover()
        return ledger.read()

    async def work(ledger: Ledger) -> None:
        await ledger.reserve(request())
        assert (await with_ledger(path, 1.0, other)).lost_calls == 0

    asyncio.run(with_ledger(path, 1.0, work))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT nanos FROM reservations").fetchall() == [(81_900,)]
    assert asyncio.run(with_ledger(path, 1.0, other)).lost_calls == 1
