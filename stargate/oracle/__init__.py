"""The Oracle and judge client: one cached, metered way to ask a stronger model, remote or the run's
own.

    config.py    OracleConfig          where, how fast, how long, how much
    records.py   ChatRequest, ChatResult, AnswerStatus, Complete
    client.py    Oracle                any OpenAI-compatible server, Azure
    local.py     LocalOracle           an engine of the run itself
    base.py      CachedOracle, stream  what both share
    cache.py, database.py, keys.py     every answer once, on disk
    cost.py, limits.py, retry.py, failures.py, answers.py, masking.py
"""

from pathlib import Path

from stargate.config.oracle import LocalOracleConfig, OracleConfig
from stargate.errors import ConfigError
from stargate.oracle.base import CachedOracle, stream
from stargate.oracle.client import Oracle
from stargate.oracle.errors import BudgetError, OracleError
from stargate.oracle.local import LocalOracle, Render
from stargate.oracle.records import (
    AnswerStatus,
    ChatRequest,
    ChatResult,
    Complete,
    JsonSchema,
    chat,
)
from stargate.protocols import Generate

__all__ = [
    "AnswerStatus",
    "BudgetError",
    "CachedOracle",
    "ChatRequest",
    "ChatResult",
    "Complete",
    "JsonSchema",
    "LocalOracle",
    "Oracle",
    "OracleError",
    "chat",
    "open_oracle",
    "stream",
]


def open_oracle(
    config: OracleConfig,
    cache_path: str | Path,
    *,
    generate: Generate | None = None,
    render: Render | None = None,
    model: str | None = None,
) -> CachedOracle:
    """The Oracle that a config names. `generate`, `render` and `model` are needed for `type: local`
    only.
    """
    if not isinstance(config, LocalOracleConfig):
        return Oracle(config, cache_path)
    if generate is None or render is None or model is None:
        raise ConfigError(
            "oracle.type: local needs a running engine; this command starts none: "
            "use type: openai with a server's base_url"
        )
    return LocalOracle(config, cache_path, generate=generate, render=render, model=model)
