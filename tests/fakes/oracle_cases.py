"""Short ways to ask a fake server through an Oracle."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from stargate.config.oracle import (
    AzureOracleConfig,
    CostConfig,
    OpenAIOracleConfig,
    PriceConfig,
    RetryConfig,
)
from stargate.oracle.client import Oracle
from stargate.oracle.records import AnswerStatus, ChatRequest, ChatResult, NoReply, chat

T = TypeVar("T")
NO_REPLY = NoReply(AnswerStatus.FAILED, "x")
QUICK = RetryConfig(
    max_attempts=4, timeout_s=5, deadline_s=30, first_backoff_s=0.01, max_backoff_s=0.05
)
PRICED = CostConfig(prices={"m": PriceConfig(input_per_million=1, output_per_million=2)})


def ask(text: str, **fields: object) -> ChatRequest:
    given = {"model": "m", "max_tokens": 50, "purpose": "gold", "record": text, **fields}
    return ChatRequest(chat(("user", text)), **given)  # type: ignore[arg-type]


def config(url: str, **fields: object) -> OpenAIOracleConfig:
    given = {"model": "m", "api_key_env": None, "retry": QUICK, **fields}
    return OpenAIOracleConfig(base_url=url, **given)


def with_oracle(
    settings: OpenAIOracleConfig | AzureOracleConfig,
    path: Path,
    work: Callable[[Oracle], Awaitable[T]],
) -> T:
    async def run() -> T:
        async with Oracle(settings, path / "cache.sqlite", rng=random.Random(0)) as oracle:
            return await work(oracle)

    return asyncio.run(run())


def complete_all(
    settings: OpenAIOracleConfig, path: Path, requests: list[ChatRequest]
) -> list[ChatResult]:
    async def work(oracle: Oracle) -> list[ChatResult]:
        return list(await asyncio.gather(*(oracle.complete(request) for request in requests)))

    return with_oracle(settings, path, work)
