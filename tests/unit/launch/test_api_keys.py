"""A key that is missing is found before anything starts."""

import pytest

from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.launch.setup import prepare

ORACLE = {"type": "openai", "model": "m", "api_key_env": "STARGATE_NO_SUCH_KEY"}


@pytest.mark.parametrize(
    "changes",
    [
        {"roleplayer": {"type": "api", "oracle": ORACLE}},
        {"evaluation": {"judge": {"backend": {"type": "api", "oracle": ORACLE}}}},
    ],
)
def test_a_missing_key_is_named_before_anything_starts(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="STARGATE_NO_SUCH_KEY is not set"):
        prepare(RunConfig.model_validate(changes), print)
