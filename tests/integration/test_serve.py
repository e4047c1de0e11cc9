"""`stargate serve`: vLLM's own server started and stopped, asked by the openai package."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stargate.launch import serving
from stargate.launch.checkpoint import open_checkpoint
from stargate.launch.cli import main
from stargate.launch.serving import server_command, server_environment
from tests.integration.trained_run import save_trained_run

pytestmark = pytest.mark.integration

SERVE = (sys.executable, "-m", "stargate.launch.cli", "serve")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """vLLM computes on a CPU with heads of 32 and more only."""
    root = tmp_path_factory.mktemp("run")
    return save_trained_run(root, embedded, hidden_size=128, head_dim=32)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def ends(pid: int) -> bool:
    """Whether a process that was killed is no more, within 10 s; nobody may have reaped it."""
    for _ in range(1000):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


class Server:
    def __init__(self, run: Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [*SERVE, str(run), "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if line.startswith("ready:"):
                return
        raise AssertionError(self.said + (run / "logs" / "serve.log").read_text())


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    one = Server(run)
    yield one
    if one.process.poll() is None:
        one.process.send_signal(signal.SIGTERM)
        one.process.wait()


@pytest.mark.engines
def test_a_client_asks_gets_a_reply_and_ctrl_c_ends_all(run: Path, server: Server) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list().data] == ["tiny-m1"]
    ask = "Which bike should I buy?"
    counts = {}
    for number in (None, 0):  # the training's number of questions, and an answer at once
        given = {} if number is None else {"chat_template_kwargs": {"num_questions": number}}
        reply = client.chat.completions.create(
            model="tiny-m1", messages=[{"role": "user", "content": ask}], seed=0, extra_body=given
        )
        assert reply.usage is not None and 0 < reply.usage.completion_tokens <= 12
        assert reply.choices[0].message.content
        counts[number] = reply.usage.prompt_tokens
    # The prompt's three examples stand before the question, and not before the answer.
    tokenizer = open_checkpoint(run, "m1").tokenizer
    template = open_checkpoint(run, "m1").template()
    messages = [{"role": "user", "content": ask}]
    wanted = {
        number: len(tokenizer.encode(tokenizer.render(messages, True, template, **given)))
        for number, given in ((None, {}), (0, {"num_questions": 0}))
    }
    assert counts == wanted and counts[None] > counts[0]
    family = psutil.Process(server.process.pid).children(recursive=True)
    assert family
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert all(ends(process.pid) for process in family)
    with socket.create_server(("127.0.0.1", server.port), reuse_port=False):
        pass


def test_a_port_in_use_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 5
    said = capsys.readouterr().err
    assert said == (
        f"stargate serve: 127.0.0.1:{port}: Address already in use; choose another --port or "
        "--host\n"
    )


def test_a_port_that_can_not_be_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(run), "--port", "70000"]) == 2
    assert "--port must be 1 to 65535, got 70000" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = "raise ValueError('no such thing')"
    monkeypatch.setattr(serving, "server_command", lambda *_: [sys.executable, "-c", failing])
    assert main(["serve", str(run), "--port", str(free_port())]) == 7
    said = capsys.readouterr().err
    assert said.startswith("stargate serve: the server ended: ValueError: no such thing (log: ")


def test_the_server_gets_the_engines_settings(run: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(run, "m1")
    command = server_command(checkpoint, tmp_path, "cpu", "127.0.0.1", 8000, "tiny-m1")
    options = dict(zip(command, [*command[1:], ""], strict=True))
    assert options["--max-model-len"] == "512" and options["--host"] == "127.0.0.1"
    assert options["--kv-cache-memory-bytes"] == "100000000"
    assert {"--enforce-eager", "--no-enable-chunked-prefill", "--no-trust-remote-code"} <= {
        *command
    }
    assert "num_questions" in Path(options["--chat-template"]).read_text(encoding="utf-8")
    assert (Path(options["--generation-config"]) / "generation_config.json").is_file()


# Answers as a server that is ready does; what it started hears of no Ctrl-C.
_STUB = """
import http.server, subprocess, sys

deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True)"
child = subprocess.Popen([sys.executable, "-c", deaf + "; time.sleep(600)"], stdout=-1)
child.stdout.readline()
open(sys.argv[2], "w").write(str(child.pid))

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def test_sigterm_ends_what_the_server_started_too(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, note, said = free_port(), tmp_path / "pid", []
    stub = [sys.executable, "-c", _STUB, str(port), str(note)]
    monkeypatch.setattr(serving, "server_command", lambda *_: stub)

    def say(text: str) -> None:
        said.append(text.split(":")[0])
        if text.startswith("ready: "):
            os.kill(os.getpid(), signal.SIGTERM)

    serving.serve(open_checkpoint(run, "m1"), "127.0.0.1", port, say)
    assert said[1:] == ["ready", "stopping ..."]
    assert ends(int(note.read_text()))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


_PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

args = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
validate_parsed_serve_args(args)
config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
default = config.model_config.get_diff_sampling_param()
limits = [config.model_config.max_model_len, config.scheduler_config.enable_chunked_prefill]
print(json.dumps([default, limits, args.host]))
"""


def test_vllm_takes_the_command_line(run: Path, tmp_path: Path) -> None:
    """As its server does, up to where the engine would start."""
    checkpoint = open_checkpoint(run, "m1")
    command = server_command(checkpoint, tmp_path, "cpu", "127.0.0.1", 8000, "tiny-m1")
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, *command[3:]],
        env=server_environment(checkpoint, "cpu"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    default, limits, host = json.loads(done.stdout.splitlines()[-1])
    sampling = {key: default[key] for key in ("temperature", "top_p", "max_tokens")}
    assert sampling == {"temperature": 0.7, "top_p": 0.8, "max_tokens": 12}
    assert limits == [512, False] and host == "127.0.0.1"
