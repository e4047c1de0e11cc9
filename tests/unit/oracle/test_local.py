"""The run's own engine as an Oracle."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from stargate.config.oracle import LocalOracleConfig, OpenAIOracleConfig
from stargate.errors import ConfigError, EngineError, RecordDropped
from stargate.oracle import local
from stargate.oracle.local import LocalOracle
from stargate.oracle.open import open_oracle
from stargate.oracle.records import AnswerStatus, ChatRequest, JsonSchema, chat
from stargate.text.chat import Message
from stargate.types import GenerateRequest, Generation, Sampling
from tests.fakes.scripted import ScriptedGenerate

T = TypeVar("T")


def render(messages: Sequence[Message]) -> list[int]:
    return list("".join(f"{message.role}:{message.text};" for message in messages).encode())


def ask(text: str, **fields: object) -> ChatRequest:
    return ChatRequest(chat(("user", text)), "base@0", 9, **fields)  # type: ignore[arg-type]


def with_oracle(
    path: Path, generate: ScriptedGenerate, work: Callable[[LocalOracle], Awaitable[T]]
) -> T:
    async def run() -> T:
        oracle = LocalOracle(
            LocalOracleConfig(type="local"),
            path / "cache.sqlite",
            generate=generate,
            render=render,
            model="base@0",
        )
        async with oracle:
            return await work(oracle)

    return asyncio.run(run())


def test_request_and_cache(tmp_path: Path) -> None:
    generate = ScriptedGenerate(lambda request: "Paris.")

    async def work(oracle: LocalOracle) -> None:
        first = await oracle.complete(ask("Where?", temperature=0.5, top_p=0.9, seed=3))
        again = await oracle.complete(ask("Where?", temperature=0.5, top_p=0.9, seed=3))
        assert (first.text, first.status, first.cost) == ("Paris.", AnswerStatus.OK, 0.0)
        assert (first.cached, again.cached, again.text) == (False, True, "Paris.")
        assert oracle.meter().calls == 1
        assert oracle.estimate([ask("x")]).money == 0

    with_oracle(tmp_path, generate, work)
    (request,) = generate.requests
    assert bytes(request.prompt_ids) == b"user:Where?;"
    assert request.sampling == Sampling(temperature=0.5, top_p=0.9, max_new_tokens=9, seed=3)


def test_seed_comes_from_the_request_when_none_is_given(tmp_path: Path) -> None:
    generate = ScriptedGenerate(lambda request: "x")

    async def work(oracle: LocalOracle) -> None:
        for text in "ab":
            await oracle.complete(ask(text))

    with_oracle(tmp_path / "1", generate, work)
    with_oracle(tmp_path / "2", generate, work)
    seeds = [request.sampling.seed for request in generate.requests]
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("text", "end", "fields", "status", "kept"),
    [
        ("Paris and", False, {}, AnswerStatus.CUT_OFF, "Paris and"),
        ("", True, {}, AnswerStatus.EMPTY, ""),
        ("I'm sorry, I can't help.", True, {}, AnswerStatus.REFUSED, "I'm sorry, I can't help."),
        ("A.\nQ: more", False, {"stop": ("Q:", "\n")}, AnswerStatus.OK, "A."),
        ("{", True, {"schema": JsonSchema("s", "{}")}, AnswerStatus.INVALID, "{"),
    ],
)
def test_statuses(
    tmp_path: Path, text: str, end: bool, fields: dict[str, object], status: str, kept: str
) -> None:
    generate = ScriptedGenerate(lambda request: text, end=end)
    result = with_oracle(tmp_path, generate, lambda oracle: oracle.complete(ask("q", **fields)))
    assert (result.status, result.text) == (status, kept)


def test_a_prompt_too_long_is_this_request_s_fault(tmp_path: Path) -> None:
    def refuse(request: GenerateRequest) -> str:
        raise RecordDropped("prompt_too_long", request.request_id, "3000 tokens")

    result = with_oracle(
        tmp_path, ScriptedGenerate(refuse), lambda oracle: oracle.complete(ask("q"))
    )
    assert result.status is AnswerStatus.TOO_LONG
    assert "3000 tokens" in result.detail


def test_a_request_that_an_engine_has_lost_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(ScriptedGenerate):
        async def __call__(self, request: GenerateRequest) -> Generation:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(local, "_ANSWER_SECONDS", 0.0)
    result = with_oracle(
        tmp_path, Lost(lambda request: ""), lambda oracle: oracle.complete(ask("q"))
    )
    assert (result.status, result.detail) == (AnswerStatus.FAILED, "no answer within 0 s")


def test_a_dead_engine_is_everybody_s(tmp_path: Path) -> None:
    def die(request: GenerateRequest) -> str:
        raise EngineError("no engine is left")

    with pytest.raises(EngineError):
        with_oracle(tmp_path, ScriptedGenerate(die), lambda oracle: oracle.complete(ask("q")))


def test_open_oracle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local needs a running engine"):
        open_oracle(LocalOracleConfig(type="local"), tmp_path / "c")

    async def run() -> str:
        config = OpenAIOracleConfig(model="m", base_url="http://h:80/v1/", api_key_env=None)
        async with open_oracle(config, tmp_path / "c") as oracle:
            return oracle.identity

    assert asyncio.run(run()) == "http://h/v1"
