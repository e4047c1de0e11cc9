"""2,000 requests against a server that does everything wrong that a server can."""

import sqlite3
from pathlib import Path

import pytest

from stargate.config.oracle import LimitsConfig, RetryConfig
from stargate.oracle.base import stream
from stargate.oracle.client import Oracle
from stargate.oracle.records import ChatResult
from tests.fakes.misbehaving_server import Behaviour, MisbehavingServer, answer_to, mixture
from tests.fakes.oracle_cases import ask, config, with_oracle

pytestmark = pytest.mark.integration

ALL_MISDEEDS = {
    Behaviour.RATE_LIMIT_SECONDS: 0.03,
    Behaviour.RATE_LIMIT_MS: 0.02,
    Behaviour.RATE_LIMIT_DATE: 0.001,
    Behaviour.ERROR_500: 0.04,
    Behaviour.ERROR_503_HTML: 0.03,
    Behaviour.HANG: 0.005,
    Behaviour.DISCONNECT: 0.03,
    Behaviour.CUT_OFF_LENGTH: 0.03,
    Behaviour.CUT_OFF_CHUNKED: 0.03,
    Behaviour.MALFORMED_JSON: 0.03,
    Behaviour.NO_CHOICES: 0.02,
    Behaviour.WRONG_TYPE: 0.03,
}


def test_2000_requests_against_everything_that_goes_wrong(tmp_path: Path) -> None:
    number, per_minute = 2000, 30_000
    settings = {
        "limits": LimitsConfig(
            max_concurrency=64, requests_per_minute=per_minute, burst_seconds=0.05
        ),
        "retry": RetryConfig(
            max_attempts=25, timeout_s=3.0, deadline_s=60, first_backoff_s=0.01, max_backoff_s=0.1
        ),
    }
    requests = [ask(f"question {index}") for index in range(number)]
    results: dict[str, ChatResult] = {}

    async def work(oracle: Oracle) -> None:
        async for request, result in stream(oracle, requests, 64):
            assert request.record not in results
            results[request.record] = result
        assert oracle.counts["ok"] == number
        for kind in ("rate_limit", "server", "timeout", "connection", "malformed"):
            assert oracle.counts[f"retry_{kind}"] > 0, kind

    with MisbehavingServer(mixture(1, ALL_MISDEEDS), delay=0.005) as server:
        with_oracle(config(server.url, **settings), tmp_path, work)
        log = server.log

    assert set(log.behaviours) == {Behaviour.OK, *ALL_MISDEEDS}
    # None lost: each request has its own answer.
    assert {name: result.text for name, result in results.items()} == {
        request.record: answer_to(request.record) for request in requests
    }
    # None duplicated: each was answered in full once, and is stored once.
    assert set(log.answered.values()) == {1} and len(log.answered) == number
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        rows = connection.execute("SELECT record, text FROM answers").fetchall()
    assert len(rows) == number
    assert dict(rows) == {name: result.text for name, result in results.items()}
    # The rate limit held at the server: a burst of 25, 500 a second. What left before a window and
    # arrives in it was in flight when it began: at most 64 requests.
    for seconds in (0.25, 1.0, 3.0):
        assert log.most_within(seconds) <= 25 + 500 * seconds + 64
    assert log.most_open_requests <= 64
