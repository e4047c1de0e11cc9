"""The Oracle client against vLLM's own OpenAI server with the embedded model, on loopback."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stargate.config.oracle import CostConfig, OpenAIOracleConfig, PriceConfig
from stargate.errors import OracleError
from stargate.oracle.client import Oracle
from stargate.oracle.records import AnswerStatus, ChatRequest, JsonSchema, chat
from stargate.resources.embedded import ensure_embedded_model
from stargate.resources.machine import free_port
from tests.fakes.oracle_cases import with_oracle
from tests.integration.test_build_vllm import build, check

pytestmark = [pytest.mark.integration, pytest.mark.engines]

MODEL = "smollm2"
KEY = "integration-key-0123456789"
MAX_MODEL_LEN = 1024
START_S = 240  # vLLM takes 30 s here, much longer on a busy machine
PERSON = JsonSchema.of(
    "person",
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"enum": [20, 40, 60]}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's server in processes of its own; all of them are gone afterwards."""
    port = free_port()
    log_file = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(ensure_embedded_model()), "--served-model-name", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "16", "--enforce-eager"]
    # Without it a small model fills its JSON with white space until it is cut off.
    structured = {"backend": "xgrammar", "disable_any_whitespace": True}
    command += ["--structured-outputs-config", json.dumps(structured)]
    # ninja, which vLLM may want, stands beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {
        **os.environ,
        "PATH": path,
        "VLLM_API_KEY": KEY,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_healthy(process, port, log_file)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(process)


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log_file: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    tail = log_file.read_text(errors="replace")[-3000:]
    pytest.fail(f"vLLM's server did not start (exit code {process.poll()}):\n{tail}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    family = [process.pid]
    if process.poll() is None:
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # The engine's process outlives its parent for some seconds.
    left = [psutil.Process(pid) for pid in family[1:] if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(left, timeout=20)
    for child in alive:
        child.kill()
    assert not psutil.wait_procs(alive, timeout=10)[1]


def config(url: str) -> OpenAIOracleConfig:
    return OpenAIOracleConfig(
        model=MODEL,
        base_url=url,
        api_key_env="STARGATE_TEST_KEY",
        cost=CostConfig(
            prices={MODEL: PriceConfig(input_per_million=1, output_per_million=2)}, max_cost=1.0
        ),
    )


def ask(text: str, max_tokens: int = 40, **fields: object) -> ChatRequest:
    return ChatRequest(chat(("user", text)), MODEL, max_tokens, **fields)  # type: ignore[arg-type]


def test_personas_golds_and_verdicts(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARGATE_TEST_KEY", KEY)
    persona = ask("Invent a person.", 60, schema=PERSON, temperature=1.0, seed=1, purpose="persona")
    golds = [
        ask(f"Name a city in {country}. One word.", purpose="gold", record=country)
        for country in ("France", "Italy", "Japan", "Spain", "Kenya", "Chile", "Peru", "India")
    ]
    verdict = ask("Which is better, A or B? Say one letter.", 4, purpose="judge", seed=2)
    requests = [persona, *golds, verdict]

    async def work(oracle: Oracle) -> None:
        results = await asyncio.gather(*(oracle.complete(request) for request in requests))
        for request, result in zip(requests, results, strict=True):
            assert result.status in (AnswerStatus.OK, AnswerStatus.CUT_OFF), result
            assert result.text.strip() and not result.cached
            assert result.usage is not None and not result.usage.estimated
            assert 0 < result.usage.completion_tokens <= request.max_tokens
        person = json.loads(results[0].require("persona"))
        assert set(person) == {"name", "age"} and person["age"] in (20, 40, 60)
        assert sum(result.ok for result in results[1:9]) >= 4
        meter = oracle.meter()
        assert (meter.calls, meter.lost_calls) == (len(requests), 0)
        assert meter.money == pytest.approx(sum(result.cost or 0 for result in results))
        assert meter.money > 0

    async def again(oracle: Oracle) -> None:
        results = await asyncio.gather(*(oracle.complete(request) for request in requests))
        assert all(result.cached for result in results)
        assert oracle.meter().calls == len(requests)

    with_oracle(config(server), tmp_path, work)
    with_oracle(config(server), tmp_path, again)


def test_bad_ends(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARGATE_TEST_KEY", KEY)

    async def work(oracle: Oracle) -> None:
        cut = await oracle.complete(ask("Count from one to one hundred in words.", 5))
        assert (cut.status, cut.usage and cut.usage.completion_tokens) == (AnswerStatus.CUT_OFF, 5)
        long = await oracle.complete(ask("word " * (2 * MAX_MODEL_LEN)))
        assert long.status is AnswerStatus.TOO_LONG, long

    with_oracle(config(server), tmp_path, work)


def test_a_wrong_key_and_an_unknown_model_are_one_line(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARGATE_TEST_KEY", "wrong-key-0123456789")
    with pytest.raises(OracleError, match=r"HTTP 401: .*STARGATE_TEST_KEY") as caught:
        with_oracle(config(server), tmp_path, lambda oracle: oracle.complete(ask("hi")))
    assert "wrong-key" not in str(caught.value) and "\n" not in str(caught.value)

    monkeypatch.setenv("STARGATE_TEST_KEY", KEY)
    settings = OpenAIOracleConfig(
        model="no-such-model", base_url=server, api_key_env="STARGATE_TEST_KEY"
    )
    request = ChatRequest(chat(("user", "hi")), "no-such-model", 5)
    with pytest.raises(OracleError, match=r"HTTP 404: .*no-such-model"):
        with_oracle(settings, tmp_path, lambda oracle: oracle.complete(request))


# Here, and not with the builds, because a server takes half a minute to start.
def test_build_with_vllms_server(server: str, tmp_path: Path) -> None:
    oracle = {
        "type": "openai",
        "model": MODEL,
        "base_url": server,
        "api_key_env": "STARGATE_TEST_KEY",
        "cost": {
            "prices": {MODEL: {"input_per_million": 1, "output_per_million": 2}},
            "max_cost": 1.0,
        },
    }
    _, report = build(tmp_path, oracle, KEY)
    check(tmp_path, report)
    assert report["cost"]["money"] > 0
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
