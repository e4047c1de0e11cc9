"""The Oracle behind HTTP: any server that speaks OpenAI's chat completions, through the official
`openai` client.

    _ask: wait for the rate limit -> reserve money -> one attempt -> Reply
              ^                                          |
              +------ back off (Retry-After, jitter) <---+ Failure that may pass

The package's own retries are off, because they know neither our limits nor our budget. Its
low-level `post` is used instead of `chat.completions.create`: it sends the very bytes that the
cache key is made of and gives the raw answer, which we check ourselves (a wrong content type or
half a JSON must not pass for an answer). With aiohttp as its transport that also makes 2,360
requests per second on a core, where `create` with the default transport makes 590.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stargate.config.oracle import AzureOracleConfig, RemoteOracleConfig
from stargate.errors import DataError, OracleError, StargateError, one_line
from stargate.monitoring.waiting import Waiting
from stargate.oracle.answers import MalformedReply, classify, explain, parse_reply
from stargate.oracle.api_key import ApiKey, LogMask, read_api_key
from stargate.oracle.base import CachedOracle, Question
from stargate.oracle.cost import Reservation, typical_usage
from stargate.oracle.failures import Failure, FailureKind, failure_of_status, status_of
from stargate.oracle.keys import server_identity
from stargate.oracle.limits import RateLimiter
from stargate.oracle.records import AnswerStatus, ChatRequest, NoReply, Reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# Servers close idle connections (uvicorn, and so vLLM, after 5 s); we do it first, or a request
# could meet the closing.
_KEEPALIVE_S = 4.0

# What a 400 speaks of when a model (GPT-5, o-series) does not take a parameter. The first names the
# parameter to use in place of max_tokens.
_PARAMETER_HINTS = {
    "max_completion_tokens": "set max_tokens_parameter: max_completion_tokens",
    "temperature": "set temperature: null, which leaves it out",
    "top_p": "set top_p: null, which leaves it out",
}

_log = logging.getLogger("stargate.oracle")


@dataclass(frozen=True, slots=True)
class _Connection:
    client: "AsyncOpenAI"
    key: ApiKey
    log_mask: LogMask


class Oracle(CachedOracle):
    """Chat completions of a remote model, each paid at most once.

    The key is read from the environment at the first call (not for `estimate`) and stays inside the
    HTTP client.
    """

    def __init__(
        self,
        config: RemoteOracleConfig,
        cache_path: str | Path,
        *,
        caches: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        address = config.endpoint if isinstance(config, AzureOracleConfig) else config.base_url
        identity = server_identity(address)
        if isinstance(config, AzureOracleConfig):
            identity += f" api-version={config.api_version}"
        super().__init__(
            identity,
            cache_path,
            max_concurrency=config.limits.max_concurrency,
            refusal_patterns=config.refusal_patterns,
            cost=config.cost,
            max_tokens_parameter=config.max_tokens_parameter,
            extra_body=config.extra_body,
            caches=caches,
        )
        self._config = config
        self._limiter = RateLimiter(config.limits)
        self._rng = rng or random.Random()  # only spreads retries in time
        self._connection: _Connection | None = None
        self._failures_in_a_row = 0
        self._unspoken_retries = 0
        self._waiting = Waiting(_log.warning)  # the first retries are nothing to speak of

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.client.close()
            self._connection.log_mask.detach()

    async def _ask(self, question: Question) -> tuple[Reply, Reservation | None] | NoReply:
        request, retry = question.request, self._config.retry
        connection = self._connect()
        if connection.key.occurs_in(question.canonical):
            raise DataError(f"{request.where}: the request carries the API key; it is not sent")
        tokens = typical_usage(request).total
        started = time.monotonic()
        waited = 0.0  # for our own limits and budget: no fault of the server
        attempt = 0
        while True:
            attempt += 1
            ready = time.monotonic()
            await self._limiter.acquire(tokens)
            held = await self._reserve(request)
            waited += time.monotonic() - ready
            outcome = await self._call(connection, question, held)
            if isinstance(outcome, Reply):
                self._heed(outcome, request)
                self._limiter.correct(tokens, outcome.usage.total)
                return outcome, held
            failure = outcome
            self._note(failure, request, held)
            if not failure.may_pass:
                return NoReply(failure.status, failure.detail)
            pause = backoff_seconds(
                attempt, retry.first_backoff_s, retry.max_backoff_s, self._rng
            ) + (failure.retry_after or 0.0)
            spent = time.monotonic() - started - waited
            if attempt == retry.max_attempts or spent + pause > retry.deadline_s:
                return self._give_up(failure, attempt, spent)
            self.counts[f"retry_{failure.kind.value}"] += 1
            self._speak(failure)
            if failure.kind is FailureKind.RATE_LIMIT and failure.retry_after:
                self._limiter.pause(failure.retry_after)
            await asyncio.sleep(pause)

    async def _reserve(self, request: ChatRequest) -> Reservation | None:
        self._raise_if_stopped()
        try:
            return await self._ledger.reserve(request)
        except StargateError as error:
            raise self._stop(error) from None

    async def _call(
        self, connection: _Connection, question: Question, held: Reservation | None
    ) -> Reply | Failure:
        """One attempt."""
        import aiohttp
        import httpx2
        import openai

        try:
            async with asyncio.timeout(self._config.retry.timeout_s):
                response = await connection.client.post(
                    self._path(question.request.model),
                    content=question.body.encode(),
                    cast_to=httpx2.Response,
                    options={"headers": {"content-type": "application/json"}},
                )
        except asyncio.CancelledError:
            self._ledger.lose(question.request, held)  # it may have been billed
            raise
        except TimeoutError:
            seconds = self._config.retry.timeout_s
            return Failure(
                FailureKind.TIMEOUT, f"no answer within {seconds:g} s", may_be_billed=True
            )
        except openai.APIStatusError as error:
            response = error.response
        except (openai.OpenAIError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            return _connection_failure(error, connection.key)
        # Outside the handlers, so that no exception of ours has one with headers in its context.
        status = status_of(response.status_code, response.content)
        if status != 200:
            now = datetime.now(UTC)
            return failure_of_status(
                status, response.headers, response.content, now, connection.key
            )
        try:
            return parse_reply(
                response.headers.get("content-type", ""),
                connection.key.mask_body(response.content),
                typical_usage(question.request),
            )
        except MalformedReply as error:
            detail = f"malformed answer: {connection.key.mask(str(error))}"
        return Failure(FailureKind.MALFORMED, detail, may_be_billed=True)

    def _path(self, model: str) -> str:
        if isinstance(self._config, AzureOracleConfig):
            return f"/deployments/{quote(model, safe='')}/chat/completions"
        return "/chat/completions"

    def _note(self, failure: Failure, request: ChatRequest, held: Reservation | None) -> None:
        """Settles the money of a failed attempt; raises if all others would fail too."""
        if failure.may_be_billed:
            self._ledger.lose(request, held)
        else:
            self._ledger.release(held)
        if failure.kind is FailureKind.REJECTED and failure.status is AnswerStatus.FAILED:
            raise self._stop(
                OracleError(f"oracle {self.identity}: {failure.detail} ({self._hint(failure)})")
            )

    def _speak(self, failure: Failure) -> None:
        """Says now and then why answers take long."""
        self._unspoken_retries += 1
        if self._waiting.speak(
            f"oracle {self.identity}: asking again ({self._unspoken_retries} times since the last "
            f"notice); last: {failure.detail}"
        ):
            self._unspoken_retries = 0

    def _hint(self, failure: Failure) -> str:
        """What to look at when the server rejects what we send."""
        for words, hint in _PARAMETER_HINTS.items():
            if failure.http_status == 400 and words in failure.detail:
                return hint
        hints: Mapping[int | None, str] = {
            401: f"check the key in {self._config.api_key_env}",
            402: "check the account's balance",
            403: f"check what the key in {self._config.api_key_env} may do",
            404: f"check the address and the model {self._config.model!r}",
            429: "check the account's balance and quota",
        }
        return hints.get(failure.http_status, "check model and parameters; it is not asked again")

    def _heed(self, reply: Reply, request: ChatRequest) -> None:
        """After an answer: one that nobody can use is kept, but not for as long as one likes."""
        status, _ = classify(reply, request, ())
        if status is AnswerStatus.MALFORMED:
            self._failed(f"malformed answer: {explain(status, reply, request)}")
        else:
            self._failures_in_a_row = 0

    def _give_up(self, failure: Failure, attempts: int, spent: float) -> NoReply:
        detail = f"{attempts} attempts in {spent:.1f} s, last: {failure.detail}"
        if failure.retry_after:
            detail += f"; it asks to wait {failure.retry_after:.0f} s"
        self._failed(detail)
        self._raise_if_stopped()
        return NoReply(AnswerStatus.FAILED, detail)

    def _failed(self, detail: str) -> None:
        """Counts a request without a usable answer; with too many in a row all that come stop."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._config.retry.stop_after_failures:
            self._stop(
                OracleError(
                    f"oracle {self.identity}: {self._failures_in_a_row} requests in a row had no "
                    f"usable answer; the last one: {detail}"
                )
            )

    def _connect(self) -> _Connection:
        """The HTTP client, made at the first call."""
        if self._connection is None:
            key = read_api_key(self._config.api_key_env)
            log_mask = LogMask(key)
            log_mask.attach()
            self._connection = _Connection(_make_client(self._config, key), key, log_mask)
        return self._connection


def backoff_seconds(failures: int, first: float, longest: float, rng: random.Random) -> float:
    """A wait after `failures` >= 1 failures, drawn from 0 .. min(longest, first x 2^(failures-1)):
    full jitter.

    Full jitter spreads the retries of many clients best for the same work
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    # The exponent is bounded so that the power stays a small float; `longest` rules long before.
    return rng.uniform(0.0, min(longest, first * 2.0 ** min(failures - 1, 60)))


def _make_client(config: RemoteOracleConfig, key: ApiKey) -> "AsyncOpenAI":
    import httpx2
    import openai

    from stargate.oracle.body_limit import UNCOMPRESSED, limit_body

    http = openai.DefaultAioHttpClient(
        # The whole attempt has its deadline (_call); within it the server may take its time.
        timeout=httpx2.Timeout(None, connect=min(10.0, config.retry.timeout_s)),
        limits=httpx2.Limits(
            max_connections=config.limits.max_concurrency, keepalive_expiry=_KEEPALIVE_S
        ),
        # A redirect would carry prompts, and perhaps the key, to an address that nobody configured.
        follow_redirects=False,
        headers=UNCOMPRESSED,
        event_hooks={"response": [limit_body]},
    )
    common: dict[str, Any] = {"api_key": key.reveal(), "max_retries": 0, "http_client": http}
    if isinstance(config, AzureOracleConfig):
        return openai.AsyncAzureOpenAI(
            azure_endpoint=config.endpoint, api_version=config.api_version, **common
        )
    client = openai.AsyncOpenAI(base_url=config.base_url, **common)
    if client.base_url.host != "api.openai.com":
        client.organization = client.project = None  # of the environment: nobody else's business
    return client


def _connection_failure(error: Exception, key: ApiKey) -> Failure:
    """No answer, or half of one. Only a connection that never came about is surely not billed."""
    import aiohttp

    # openai's error has httpx2's as its cause, and that one aiohttp's, which alone is precise.
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        if isinstance(error, aiohttp.ClientError):
            break
        error = error.__cause__
    never_sent = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
    text = key.mask(one_line(error))[:200]
    name = type(error).__name__
    return Failure(
        FailureKind.CONNECTION,
        f"connection failed: {name}: {text}" if text else f"connection failed: {name}",
        may_be_billed=not isinstance(error, never_sent),
    )
