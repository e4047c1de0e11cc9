"""The Oracle that a config names."""

from pathlib import Path

from stargate.config.oracle import LocalOracleConfig, OracleConfig
from stargate.errors import ConfigError
from stargate.oracle.base import CachedOracle
from stargate.oracle.client import Oracle
from stargate.oracle.local import LocalOracle, Render
from stargate.protocols import Generate


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
