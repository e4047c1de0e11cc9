"""The Oracle's configuration: where it is, how fast it may be asked, how long to insist, what it
costs.

`OracleConfig` is a tagged union: `type: openai` (any OpenAI-compatible base_url), `azure`, or
`local` (an engine of the run itself). No key stands in it, only the name of the environment
variable that holds one.
"""

import json
import re
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from stargate.config.component import Component, PositiveInt

PositiveFloat = Annotated[float, Field(gt=0.0)]
Money = Annotated[float, Field(ge=0.0)]
# Of a request; null leaves it to the server: reasoning models refuse any other.
Temperature = Annotated[float, Field(ge=0.0, le=2.0)] | None
TopP = Annotated[float, Field(gt=0.0, le=1.0)] | None

# How models decline in words. Only the beginning of a short answer is looked at, in lower case and
# with straight apostrophes (answers.py).
_CANNOT = r"(can't|can ?not|'m unable|am unable|'m not able|am not able|won't|will not)"
REFUSAL_PATTERNS = (
    rf"(i'm|i am) (very |so |really )?(sorry|afraid)\b.{{0,60}}({_CANNOT}|not (allowed|permitted))",
    rf"(sorry|unfortunately|i apologi[sz]e)\b,? (but )?(i|we) ?{_CANNOT}",
    rf"(i|we) ?{_CANNOT} (to )?(help|assist|comply|provide|fulfil|create|generate|write|engage)",
    rf"as an ai( language model| assistant)?,? (i|we) ?({_CANNOT}|do not|don't)",
)


class PriceConfig(Component):
    """What a model costs per million tokens."""

    input_per_million: Money
    output_per_million: Money


class CostConfig(Component):
    """Prices per model, and the money that one output may cost in all its runs together."""

    prices: dict[str, PriceConfig] = Field(default_factory=dict)
    max_cost: PositiveFloat | None = None


class LimitsConfig(Component):
    """How fast the server may be asked. None: as fast as `max_concurrency` requests in flight go.

    `burst_seconds`: so much of a minute's limit may be sent at once after a pause.
    """

    max_concurrency: PositiveInt = 64
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    burst_seconds: Annotated[float, Field(gt=0.0, le=30.0)] = 1.0


class RetryConfig(Component):
    """How long to insist on one request. Waits for rate limits of our own do not count.

    `stop_after_failures`: so many requests given up in a row mean that nobody answers: the run
    stops.
    """

    max_attempts: PositiveInt = 8
    timeout_s: PositiveFloat = 120.0  # of one attempt, from connecting to the last byte
    deadline_s: PositiveFloat = 900.0  # of all attempts and waits of one request
    first_backoff_s: PositiveFloat = 0.5
    max_backoff_s: PositiveFloat = 30.0
    stop_after_failures: PositiveInt = 32


class _AnyOracleConfig(Component):
    """What all Oracles share."""

    refusal_patterns: tuple[str, ...] = REFUSAL_PATTERNS

    @field_validator("refusal_patterns")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns


class _RemoteOracleConfig(_AnyOracleConfig):
    """What all Oracles behind HTTP share. `extra_body` goes into each request and into its cache
    key.
    """

    model: str = Field(min_length=1)
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, Any] = Field(default_factory=dict)
    limits: LimitsConfig = LimitsConfig()
    retry: RetryConfig = RetryConfig()
    cost: CostConfig = CostConfig()

    @field_validator("extra_body")
    @classmethod
    def _extra_is_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(extra.keys() & _OWN_PARAMETERS)
        if taken:
            raise ValueError(f"these are set by stargate and can't be overridden: {taken}")
        try:
            json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"can't be sent as JSON: {error}") from None
        return extra

    @model_validator(mode="after")
    def _cost_can_be_known(self) -> Self:
        if self.cost.max_cost is not None and self.model not in self.cost.prices:
            raise ValueError(
                f"cost.max_cost needs a price for the model {self.model!r} in cost.prices, "
                f"got prices for {sorted(self.cost.prices)}"
            )
        return self


def _url(example: str) -> AfterValidator:
    """A plain http(s) address. The error shows no part that may be a secret."""
    return AfterValidator(partial(_check_url, example=example))


def _check_url(url: str, example: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"not a URL; expected something like {example}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"expected an http(s) URL such as {example}")
    if "@" in parts.netloc:
        raise ValueError(
            "a URL must not carry a user or password; put the key into the environment "
            "variable named by api_key_env"
        )
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError(f"a URL must not carry a query or fragment; expected one like {example}")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class OpenAIOracleConfig(_RemoteOracleConfig):
    """OpenAI, a vLLM server, or any proxy that speaks the same API.

    A key goes over plain http to another host only with `plain_http`: everyone on the way reads it.
    """

    type: Literal["openai"] = "openai"
    base_url: Annotated[str, _url("http://127.0.0.1:8000/v1")] = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    plain_http: bool = False

    @model_validator(mode="after")
    def _key_is_not_shouted(self) -> Self:
        parts = urlsplit(self.base_url)
        if parts.scheme == "http" and self.api_key_env is not None and not self.plain_http:
            host = parts.hostname or ""
            if not _is_loopback(host):
                raise ValueError(
                    f"base_url is plain http to {host}, which would send the key of "
                    f"{self.api_key_env} readable: use https, api_key_env: null, or plain_http: "
                    "true on a network of your own"
                )
        return self


class AzureOracleConfig(_RemoteOracleConfig):
    """Azure OpenAI. `model` is the deployment's name."""

    type: Literal["azure"]
    endpoint: Annotated[str, _url("https://NAME.openai.azure.com")]
    api_version: str = Field(min_length=1)
    api_key_env: str = "AZURE_OPENAI_API_KEY"


class LocalOracleConfig(_AnyOracleConfig):
    """An engine of the run itself; it costs nothing. `model` None: the run's own model."""

    type: Literal["local"]
    model: str | None = None
    max_concurrency: PositiveInt = 64


RemoteOracleConfig = OpenAIOracleConfig | AzureOracleConfig
OracleConfig = Annotated[
    OpenAIOracleConfig | AzureOracleConfig | LocalOracleConfig, Field(discriminator="type")
]

_OWN_PARAMETERS = frozenset(
    (
        *("messages", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
        *("seed", "stop", "response_format", "stream", "n"),
    )
)
