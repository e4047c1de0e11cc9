"""The client against a server that answers: once, in order, as it was asked."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stargate.config.oracle import AzureOracleConfig, RetryConfig
from stargate.errors import ConfigError, DataError, OracleError, RecordDropped
from stargate.oracle.base import stream
from stargate.oracle.client import Oracle
from stargate.oracle.cost import Estimate, Meter
from stargate.oracle.records import AnswerStatus, ChatRequest, ChatResult, chat
from tests.fakes.misbehaving_server import MisbehavingServer, Raw, completion
from tests.fakes.oracle_cases import PRICED, ask, complete_all, config, with_oracle


def test_one_request_is_one_call_and_then_cached(tmp_path: Path) -> None:
    with MisbehavingServer(delay=0.05) as server:
        settings = config(server.url, cost=PRICED)
        results = complete_all(settings, tmp_path, [ask("a", record=str(n)) for n in range(20)])
        assert sum(server.log.asked.values()) == 1
        assert {result.text for result in results} == {"answer to a"}
        assert sorted(result.cached for result in results) == [False] + [True] * 19
        assert sum(result.cost or 0 for result in results) == 0.00014  # 100 x 1 + 20 x 2 millionths
        (again,) = complete_all(settings, tmp_path, [ask("a")])
        assert (again.cached, again.cost, again.text) == (True, 0.0, "answer to a")
        assert sum(server.log.asked.values()) == 1


def test_two_oracles_on_one_cache_share_a_call(tmp_path: Path) -> None:
    with MisbehavingServer(delay=0.2) as server:

        async def run() -> list[ChatResult]:
            path = tmp_path / "cache.sqlite"
            async with (
                Oracle(config(server.url), path) as one,
                Oracle(config(server.url), path) as two,
            ):
                return list(await asyncio.gather(one.complete(ask("a")), two.complete(ask("a"))))

        results = asyncio.run(run())
        assert sum(server.log.asked.values()) == 1
    assert sorted(result.cached for result in results) == [False, True]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (
            completion("no", refusal="I won't"),
            AnswerStatus.REFUSED,
            'the model declined: "I won\'t"',
        ),
        (
            completion("Sorry, I can't."),
            AnswerStatus.REFUSED,
            'the model declined: "Sorry, I can\'t."',
        ),
        (completion(""), AnswerStatus.EMPTY, "the model said nothing"),
        (completion("hal", "length"), AnswerStatus.CUT_OFF, "max_tokens = 50 was reached"),
        (completion("x", "content_filter"), AnswerStatus.FILTERED, "a content filter stopped"),
        (completion("<think>x", "stop"), AnswerStatus.CUT_OFF, "its reasoning never ends"),
        (completion("x", "who_knows"), AnswerStatus.MALFORMED, "finish_reason 'who_knows' does"),
        (completion("x", None), AnswerStatus.MALFORMED, "finish_reason 'none' does not"),
        (b'{"choices": [{}]}', AnswerStatus.MALFORMED, "unreadable: a choice without a message"),
    ],
)
def test_bad_answers_are_kept_as_what_they_are(
    tmp_path: Path, body: bytes, status: AnswerStatus, detail: str
) -> None:
    with MisbehavingServer(lambda seen: Raw(200, body)) as server:
        (first,) = complete_all(config(server.url), tmp_path, [ask("a")])
        (again,) = complete_all(config(server.url), tmp_path, [ask("a")])
        assert sum(server.log.asked.values()) == 1  # it was paid: it is not asked twice
    assert (first.status, again.status) == (status, status)
    assert (first.cached, again.cached, first.ok) == (False, True, False)
    assert first.detail.startswith(detail) and "\n" not in first.detail
    with pytest.raises(RecordDropped, match="t1:p1") as caught:
        again.require("t1:p1")
    assert caught.value.reason == f"oracle_{status.value}"


def test_what_servers_of_the_field_say_is_an_answer(tmp_path: Path) -> None:
    parts = '[{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Dear Ann"}]'
    bodies = {
        "tgi": completion("Dear Ann", "eos_token"),
        "gemini": completion("Dear Ann", "STOP"),
        "thinking": completion("<think>Hm.</think>\n\nDear Ann"),
        "parts": completion("TEXT").replace(b'"TEXT"', parts.encode()),
        "marks": completion("Dear Ann<|im_end|>"),
    }
    with MisbehavingServer(lambda seen: Raw(200, bodies[seen.text])) as server:
        results = complete_all(config(server.url), tmp_path, [ask(text) for text in bodies])
        assert len(server.seen) == len(bodies)
    assert {(result.status, result.text) for result in results} == {(AnswerStatus.OK, "Dear Ann")}


def test_answers_that_nobody_can_use_are_kept_and_stop_the_run(tmp_path: Path) -> None:
    retry = RetryConfig(stop_after_failures=3)
    requests = [ask(text) for text in "abcd"]

    async def work(oracle: Oracle) -> Meter:
        for request in requests[:3]:
            assert (await oracle.complete(request)).status is AnswerStatus.MALFORMED
        with pytest.raises(OracleError, match=r"3 requests in a row had no usable answer.*'odd'"):
            await oracle.complete(requests[3])
        return oracle.meter()

    with MisbehavingServer(lambda seen: Raw(200, completion("x", "odd"))) as server:
        settings = config(server.url, retry=retry, cost=PRICED)
        meter = with_oracle(settings, tmp_path, work)
        assert (meter.calls, meter.lost_calls) == (3, 0)
        again = complete_all(settings, tmp_path, requests[:3])  # none of them is paid twice
        assert all(result.cached for result in again) and len(server.seen) == 3


def test_a_caller_that_goes_away_does_not_lose_the_answer(tmp_path: Path) -> None:
    with MisbehavingServer(delay=0.3) as server:

        async def work(oracle: Oracle) -> ChatResult:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(oracle.complete(ask("a")), 0.1)
            return await oracle.complete(ask("a"))

        result = with_oracle(config(server.url), tmp_path, work)
        assert sum(server.log.asked.values()) == 1
    assert result.text == "answer to a"


def test_estimate_calls_nothing_and_needs_no_key(tmp_path: Path) -> None:
    async def work(oracle: Oracle) -> Estimate:
        return oracle.estimate([ask("a" * 40), ask("a" * 40), ask("b" * 40)])

    settings = config("http://127.0.0.1:9/v1", api_key_env="STARGATE_NO_SUCH_KEY", cost=PRICED)
    estimate = with_oracle(settings, tmp_path, work)
    assert estimate == Estimate(2, 1, prompt_tokens=46, completion_tokens=100, money=0.000246)
    with pytest.raises(ConfigError, match="STARGATE_NO_SUCH_KEY is not set"):
        complete_all(settings, tmp_path, [ask("a")])


def test_azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_AZURE_KEY", "azure-key-0123456789")
    with MisbehavingServer() as server:
        settings = AzureOracleConfig(
            type="azure",
            model="my gpt",
            endpoint=server.url.removesuffix("/v1"),
            api_version="2024-10-21",
            api_key_env="TEST_AZURE_KEY",
        )

        async def work(oracle: Oracle) -> ChatResult:
            return await oracle.complete(ask("a", model="my gpt"))

        assert with_oracle(settings, tmp_path, work).text == "answer to a"
        (seen,) = server.seen
    assert seen.path == ("/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21")
    assert seen.headers["api-key"] == "azure-key-0123456789"


def test_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-users-real-openai-key")
    with MisbehavingServer() as server:
        settings = config(
            server.url, extra_body={"min_p": 0.1}, max_tokens_parameter="max_completion_tokens"
        )
        complete_all(settings, tmp_path, [ask("Grüße", seed=3)])
        (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["authorization"] == "Bearer none"  # never a key that nobody named
    assert seen.body == {
        "messages": [{"content": "Grüße", "role": "user"}],
        "max_completion_tokens": 50,
        "min_p": 0.1,
        "model": "m",
        "seed": 3,
        "temperature": 0.0,
    }


def test_stream_draws_no_more_than_it_has_room_for(tmp_path: Path) -> None:
    drawn: list[int] = []

    def source() -> Iterator[ChatRequest]:
        for index in range(40):
            drawn.append(index)
            yield ask(str(index))

    with MisbehavingServer() as server:

        async def work(oracle: Oracle) -> int:
            done = 0
            async for _ in stream(oracle, source(), 4):
                done += 1
                assert len(drawn) <= done + 4
            return done

        assert with_oracle(config(server.url), tmp_path, work) == 40


def test_a_request_that_carries_the_key_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "planted-key-0123456789")
    with (
        MisbehavingServer() as server,
        pytest.raises(DataError, match="carries the API key") as caught,
    ):
        request = replace(ask("a"), messages=chat(("user", "it is planted-key-0123456789")))
        complete_all(config(server.url, api_key_env="TEST_KEY"), tmp_path, [request])
    assert "planted" not in str(caught.value)
    assert not server.seen


def test_json_body_of_the_fake_is_what_the_package_expects() -> None:
    from openai.types.chat import ChatCompletion

    parsed = ChatCompletion.model_validate(json.loads(completion("x")))
    assert parsed.choices[0].message.content == "x"
