"""What the client does when it gets no answer, must not ask, or may not pay."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from stargate.config.oracle import CostConfig, RetryConfig
from stargate.errors import BudgetError, ConfigError, MachineError, OracleError
from stargate.oracle.client import Oracle
from stargate.oracle.records import AnswerStatus, ChatRequest, ChatResult
from tests.fakes.misbehaving_server import Behaviour, MisbehavingServer, Raw, Seen
from tests.fakes.oracle_cases import PRICED, ask, complete_all, config, with_oracle

pytestmark = pytest.mark.integration


def test_given_up_requests_are_asked_again_later(tmp_path: Path) -> None:
    answers = {"a": Behaviour.ERROR_500, "b": Behaviour.OK}
    with MisbehavingServer(lambda seen: answers[seen.text]) as server:
        failed, fine = complete_all(config(server.url), tmp_path, [ask("a"), ask("b")])
        assert (failed.status, failed.text, failed.cost) == (AnswerStatus.FAILED, "", None)
        assert failed.detail.startswith("4 attempts in ")
        assert failed.detail.endswith("last: HTTP 500: oops")
        assert fine.ok
        assert sum(server.log.asked.values()) == 4 + 1

        answers["a"] = Behaviour.OK
        (later,) = complete_all(config(server.url), tmp_path, [ask("a")])
        assert later.ok and not later.cached


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    limited = Raw(429, b"{}", headers=(("Retry-After", "0.4"),))

    def behave(seen: Seen) -> Behaviour | Raw:
        return limited if seen.index == 0 else Behaviour.OK

    with MisbehavingServer(behave) as server:

        async def work(oracle: Oracle) -> None:
            first = asyncio.create_task(oracle.complete(ask("a")))
            while not oracle.counts["retry_rate_limit"]:
                await asyncio.sleep(0.01)
            assert (await oracle.complete(ask("b"))).ok  # it waits too: the limit is the account's
            assert (await first).ok

        with_oracle(config(server.url), tmp_path, work)
        first, *rest = server.log.arrivals
        assert [time_ - first >= 0.4 for time_ in rest] == [True, True]


def test_a_wait_beyond_the_deadline_is_not_begun(tmp_path: Path) -> None:
    limited = Raw(429, b"{}", headers=(("Retry-After", "3600"),))
    with MisbehavingServer(lambda seen: limited) as server:
        started = time.monotonic()
        (result,) = complete_all(config(server.url), tmp_path, [ask("a")])
        assert time.monotonic() - started < 5
        assert sum(server.log.asked.values()) == 1
    assert result.status is AnswerStatus.FAILED
    assert result.detail.endswith("last: HTTP 429: {}; it asks to wait 3600 s")


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "check model and parameters"),
        (401, "check the key in None"),
        (403, "what the key"),
        (404, "check the address and the model 'm'"),
        (307, "check model and parameters"),
    ],
)
def test_what_would_fail_for_all_stops_at_once(tmp_path: Path, status: int, hint: str) -> None:
    error = Raw(
        status, b'{"error": {"message": "not so"}}', headers=(("location", "http://127.0.0.1:9/"),)
    )
    with MisbehavingServer(lambda seen: error, delay=0.01) as server:

        async def work(oracle: Oracle) -> str:
            with pytest.raises(OracleError) as caught:
                await oracle.complete(ask("a"))
            with pytest.raises(OracleError, match="not so"):
                await oracle.complete(ask("b"))  # not even asked
            return str(caught.value)

        message = with_oracle(config(server.url), tmp_path, work)
        assert sum(server.log.asked.values()) == 1
        assert message.startswith(f"oracle {server.url}: HTTP {status}: not so (")
    assert hint in message and "\n" not in message


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "set max_tokens_parameter: max_completion_tokens",
        ),
        ("Unsupported value: 'temperature' does not support 0.0", "set temperature: null"),
        ("Unsupported parameter: 'top_p'", "set top_p: null"),
    ],
)
def test_a_parameter_that_a_model_refuses_is_named(tmp_path: Path, said: str, hint: str) -> None:
    error = Raw(400, json.dumps({"error": {"message": said}}).encode())
    with MisbehavingServer(lambda seen: error) as server, pytest.raises(OracleError, match=hint):
        complete_all(config(server.url), tmp_path, [ask("a")])


def test_what_is_wrong_with_one_request_does_not_stop_the_others(tmp_path: Path) -> None:
    filtered = Raw(400, b'{"error": {"message": "no", "code": "content_filter"}}')
    too_long = Raw(400, b'{"error": {"message": "x", "code": "context_length_exceeded"}}')
    answers: dict[str, Behaviour | Raw] = {"a": filtered, "b": too_long, "c": Behaviour.OK}
    with MisbehavingServer(lambda seen: answers[seen.text]) as server:
        results = complete_all(config(server.url), tmp_path, [ask(text) for text in "abc"])
        assert sum(server.log.asked.values()) == 3
    assert [result.status.value for result in results] == ["filtered", "too_long", "ok"]


def test_nobody_answering_stops_the_run(tmp_path: Path) -> None:
    retry = RetryConfig(
        max_attempts=2, first_backoff_s=0.001, max_backoff_s=0.002, stop_after_failures=3
    )
    with MisbehavingServer() as server:
        url = server.url  # nobody listens there once the server is gone

    async def work(oracle: Oracle) -> None:
        for text in "ab":
            result = await oracle.complete(ask(text))
            assert "connection failed: ClientConnectorError" in result.detail
        with pytest.raises(OracleError, match="3 requests in a row had no usable answer"):
            await oracle.complete(ask("c"))
        assert oracle.meter().lost_calls == 0  # what was never sent is not billed

    with_oracle(config(url, retry=retry), tmp_path, work)


def test_a_hanging_server_is_left_in_time(tmp_path: Path) -> None:
    retry = RetryConfig(max_attempts=2, timeout_s=0.2, first_backoff_s=0.01)
    with MisbehavingServer(lambda seen: Behaviour.HANG) as server:

        async def work(oracle: Oracle) -> ChatResult:
            result = await oracle.complete(ask("a"))
            await oracle._database.submit(lambda connection: None)  # behind it in the queue
            assert oracle.meter().lost_calls == 2  # perhaps it was billed
            return result

        result = with_oracle(config(server.url, retry=retry, cost=PRICED), tmp_path, work)
    assert result.detail.endswith("last: no answer within 0.2 s")


def test_answers_that_cannot_be_kept_are_not_paid_for(tmp_path: Path) -> None:
    with MisbehavingServer() as server:

        async def work(oracle: Oracle) -> None:
            def fill(connection: sqlite3.Connection) -> None:
                (pages,) = connection.execute("PRAGMA page_count").fetchone()
                connection.execute(f"PRAGMA max_page_count={pages}")

            await oracle._database.submit(fill)
            with pytest.raises(MachineError, match=r"cache.sqlite: database or disk is full"):
                for index in range(100):
                    await oracle.complete(ask("x" * 2000, record=str(index), seed=index))
            asked = len(server.seen)
            with pytest.raises(MachineError):
                await oracle.complete(ask("another"))
            assert len(server.seen) == asked

        with_oracle(config(server.url), tmp_path, work)


def test_max_cost_is_never_exceeded(tmp_path: Path) -> None:
    # Each call costs 100 x 1 + 20 x 2 = 140 millionths, and at most (128 + 16 + 4) + 50 x 2 = 248.
    cost = CostConfig(prices=PRICED.prices, max_cost=0.002)
    requests = [ask(f"q{index:03}") for index in range(100)]

    async def work(oracle: Oracle) -> float:
        results = await asyncio.gather(
            *(oracle.complete(request) for request in requests), return_exceptions=True
        )
        errors = [result for result in results if isinstance(result, BaseException)]
        assert errors and all(isinstance(error, BudgetError) for error in errors)
        meter = oracle.meter()
        assert meter.calls == len(results) - len(errors)
        return meter.money

    with MisbehavingServer(delay=0.01) as server:
        spent = with_oracle(config(server.url, cost=cost), tmp_path, work)
        calls = sum(server.log.asked.values())
        assert spent == pytest.approx(calls * 0.00014)
        assert 0.002 - 0.000248 < spent <= 0.002  # it stops where one more could be too much
        # A restart does not forget what was paid, and cached answers cost nothing.
        again = with_oracle(config(server.url, cost=cost), tmp_path, work_again(requests, calls))
        assert again == spent and sum(server.log.asked.values()) == calls


def work_again(requests: list[ChatRequest], calls: int) -> Callable[[Oracle], Awaitable[float]]:
    async def work(oracle: Oracle) -> float:
        with pytest.raises(BudgetError):
            await oracle.complete(ask("new"))
        estimate = oracle.estimate(requests)
        assert (estimate.calls, estimate.cached) == (len(requests) - calls, calls)
        return oracle.meter().money

    return work


def test_max_cost_with_a_request_for_another_model(tmp_path: Path) -> None:
    cost = CostConfig(prices=PRICED.prices, max_cost=1.0)
    with (
        MisbehavingServer() as server,
        pytest.raises(ConfigError, match="needs a price for the model 'm2'"),
    ):
        complete_all(config(server.url, cost=cost), tmp_path, [ask("a", model="m2")])
