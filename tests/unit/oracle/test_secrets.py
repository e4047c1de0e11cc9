"""A planted key is sent to the server and is found nowhere else."""

import asyncio
import json
import logging
import pickle
import traceback
from pathlib import Path

import pytest

from stargate.config.oracle import OpenAIOracleConfig, RetryConfig
from stargate.errors import ConfigError, OracleError
from stargate.oracle.api_key import ApiKey, read_api_key
from stargate.oracle.client import Oracle
from stargate.oracle.records import ChatRequest, chat
from tests.fakes.misbehaving_server import Behaviour, MisbehavingServer, Raw, Seen, completion
from tests.fakes.oracle_cases import ask, complete_all
from tests.fakes.oracle_cases import config as plain_config

KEY = 'sk-planted+key/"0123456789'
ESCAPED = 'sk-planted+key/\\"0123456789'
PART = "planted"  # whatever holds this word holds (part of) the key


def config(url: str) -> OpenAIOracleConfig:
    retry = RetryConfig(max_attempts=2, first_backoff_s=0.01, max_backoff_s=0.01)
    return OpenAIOracleConfig(model="m", base_url=url, api_key_env="TEST_KEY", retry=retry)


def misbehave(seen: Seen) -> Behaviour | Raw:
    """Echoes the key wherever a server could."""
    given = seen.headers["authorization"]
    echoes: dict[str, Behaviour | Raw] = {
        "answer": Raw(200, completion(f"You are {given}"), headers=(("x-request-id", given),)),
        "refusal": Raw(200, completion("", refusal=f"not for {given}")),
        "error": Raw(500, json.dumps({"error": {"message": f"no {given}"}}).encode()),
        "html": Raw(503, f"<html>{given}</html>".encode(), "text/html"),
        "type": Raw(200, b"x", f"text/{given}"),
        "fatal": Behaviour.ECHO_KEY_401,
    }
    return echoes[seen.text]


def everything_said(error: BaseException | None) -> str:
    """The error, its causes and contexts, its notes and its attributes."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args), repr(vars(error))]
        texts += traceback.format_exception(error, chain=True)
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def test_the_key_is_found_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def work(server: MisbehavingServer) -> None:
        async with Oracle(config(server.url), tmp_path / "cache.sqlite") as oracle:
            for text in ("answer", "refusal", "error", "html", "type", "fatal"):
                request = ChatRequest(chat(("user", text)), "m", 5, purpose="gold", record=text)
                try:
                    said.append(repr(await oracle.complete(request)))
                except OracleError as error:
                    said.append(everything_said(error))
            said.extend([repr(oracle), repr(oracle._connection), repr(oracle._config)])
            said.extend(repr(vars(oracle)).splitlines())
            # While it is open, so that the write-ahead log is looked at too.
            for file in tmp_path.iterdir():
                assert PART.encode() not in file.read_bytes(), file

    with MisbehavingServer(misbehave) as server:
        asyncio.run(work(server))
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
        assert len(server.seen) == 1 + 1 + 2 + 2 + 2 + 1

    assert "[key]" in "".join(said)
    for text in said:
        assert PART not in text
    assert len(caplog.records) > 10
    assert PART not in caplog.text
    assert not any(PART in repr(vars(record)) for record in caplog.records)
    for file in tmp_path.iterdir():
        assert PART.encode() not in file.read_bytes(), file


def test_mask_knows_all_spellings() -> None:
    key = ApiKey(KEY, "TEST_KEY")
    spelled = [
        KEY,
        ESCAPED,
        "sk-planted%2Bkey%2F%220123456789",
        "c2stcGxhbnRlZCtrZXkvIjAxMjM0NTY3ODk=",
    ]
    for text in spelled:
        assert key.mask(f"a {text} b") == "a [key] b"
        assert key.mask_body(f"a {text} b".encode()) == b"a [key] b"
    assert key.mask("Incorrect API key provided: sk-plan****6789.") == (
        "Incorrect API key provided: [key]"
    )
    assert repr(key) == "ApiKey(from TEST_KEY)"
    assert str(key) == "ApiKey(from TEST_KEY)"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_placeholders_do_not_garble_answers() -> None:
    key = ApiKey("EMPTY", "TEST_KEY")
    assert key.mask_body(b"The box is EMPTY.") == b"The box is EMPTY."
    assert not key.occurs_in("EMPTY")


@pytest.mark.parametrize("value", ["", "  ", "planted key", "planted\nkey", "plantedé"])
def test_bad_keys_are_refused_without_showing_them(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(ConfigError, match="TEST_KEY") as caught:
        read_api_key("TEST_KEY")
    assert PART not in everything_said(caught.value)


def test_a_key_file_with_a_newline_at_its_end_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "planted-key\n")
    assert read_api_key("TEST_KEY").reveal() == "planted-key"


def test_the_account_at_openai_is_told_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-planted")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-planted")
    with MisbehavingServer() as server:
        complete_all(plain_config(server.url), tmp_path, [ask("a")])
        [seen] = server.seen
    assert "planted" not in str(seen.headers)
