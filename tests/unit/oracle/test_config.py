"""The Oracle's configuration refuses what would fail, leak or cost later."""

import pytest
from pydantic import TypeAdapter, ValidationError

from stargate.config.oracle import (
    AzureOracleConfig,
    LocalOracleConfig,
    OpenAIOracleConfig,
    OracleConfig,
)

ORACLE: TypeAdapter[OracleConfig] = TypeAdapter(OracleConfig)
OPENAI = {"type": "openai", "model": "gpt"}


def test_types() -> None:
    azure = {"type": "azure", "model": "d", "endpoint": "https://x.openai.azure.com"}
    assert isinstance(ORACLE.validate_python(OPENAI), OpenAIOracleConfig)
    assert isinstance(
        ORACLE.validate_python({**azure, "api_version": "2024-10-21"}), AzureOracleConfig
    )
    assert isinstance(ORACLE.validate_python({"type": "local"}), LocalOracleConfig)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": "https://user:hunter2@h/v1"}, "must not carry a user or password"),
        ({"base_url": "https://hunter2@h/v1"}, "must not carry a user or password"),
        ({"base_url": "https://h/v1?key=hunter2"}, "must not carry a query"),
        ({"base_url": "ftp://h/v1"}, r"expected an http\(s\) URL"),
        ({"base_url": "api.openai.com/v1"}, r"expected an http\(s\) URL"),
        ({"base_url": "http://h:99999/v1"}, "not a URL"),
        (
            {"base_url": "http://h:80/v1"},
            "would send the key of OPENAI_API_KEY",
        ),
        ({"base_url": "http://127.evil.example/v1"}, "would send the key of OPENAI_API_KEY"),
        ({"cost": {"max_cost": 5}}, "needs a price for the model 'gpt' in cost.prices, got prices"),
        ({"cost": {"max_cost": 0}}, "greater than 0"),
        ({"cost": {"prices": {"gpt": {"input_per_million": -1}}}}, "greater than or equal to 0"),
        ({"extra_body": {"model": "other"}}, r"can't be overridden: \['model'\]"),
        ({"extra_body": {"stream": True}}, r"can't be overridden: \['stream'\]"),
        ({"extra_body": {"x": float("nan")}}, "can't be sent as JSON"),
        ({"extra_body": {"x": {1, 2}}}, "can't be sent as JSON"),
        ({"refusal_patterns": ["(no"]}, "is not a regular expression"),
        ({"limits": {"requests_per_minute": 0}}, "greater than or equal to 1"),
        ({"api_key": "hunter2"}, "Extra inputs are not permitted"),
        ({"model": ""}, "at least 1 character"),
    ],
)
def test_mistakes_are_named_without_what_was_given(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        OpenAIOracleConfig.model_validate({**OPENAI, **fields})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"base_url": "http://127.0.0.1:8000/v1"},
        {"base_url": "http://[::1]:8000/v1"},
        {"base_url": "http://h:80/v1", "api_key_env": None},
        {"base_url": "http://h:80/v1", "plain_http": True},
    ],
)
def test_plain_http_to_whoever_may_read_the_key(fields: dict[str, object]) -> None:
    assert OpenAIOracleConfig.model_validate({**OPENAI, **fields})


def test_max_cost_with_a_price_is_fine() -> None:
    prices = {"gpt": {"input_per_million": 1, "output_per_million": 2}}
    config = ORACLE.validate_python({**OPENAI, "cost": {"max_cost": 5, "prices": prices}})
    assert isinstance(config, OpenAIOracleConfig) and config.cost.max_cost == 5
