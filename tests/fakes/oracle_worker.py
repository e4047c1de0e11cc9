"""A process that asks an Oracle: the tests kill it, or run two of them at once.

    python -m tests.fakes.oracle_worker URL CACHE FIRST LAST [MAX_COST]

Asks the questions FIRST..LAST-1, prints "started", and at the end the number of answers.
"""

import asyncio
import sys
from collections.abc import Iterator

from stargate.config.oracle import CostConfig
from stargate.oracle.base import stream
from stargate.oracle.client import Oracle
from stargate.oracle.records import ChatRequest, chat
from tests.fakes.oracle_cases import PRICED, config

CONCURRENCY = 16


def question(index: int) -> ChatRequest:
    """What both the worker and its test ask."""
    return ChatRequest(chat(("user", f"question {index}")), "m", 50, record=str(index))


def questions(first: int, last: int) -> Iterator[ChatRequest]:
    return (question(index) for index in range(first, last))


async def main(url: str, cache: str, first: int, last: int, max_cost: float | None) -> None:
    cost = CostConfig(prices=PRICED.prices, max_cost=max_cost)
    async with Oracle(config(url, cost=cost), cache) as oracle:
        print("started", flush=True)
        done = 0
        async for request, result in stream(oracle, questions(first, last), CONCURRENCY):
            result.require(request.where)
            done += 1
    print(done, flush=True)


if __name__ == "__main__":
    given = sys.argv
    money = float(given[5]) if len(given) > 5 else None
    asyncio.run(main(given[1], given[2], int(given[3]), int(given[4]), money))
