"""vLLM's OpenAI-compatible server as a child process, for one checkpoint.

checkpoint -> template and generation config in a folder -> server -> ready -> Ctrl-C -> all ended
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stargate.actors.engines.spec import EngineSpec, engine_arguments, engine_environment
from stargate.actors.engines.startup import first_exception
from stargate.actors.process.paths import path_with_venv, socket_folder
from stargate.config.run import Device, RunConfig
from stargate.errors import ConfigError, EngineError, MachineError
from stargate.launch.checkpoint import Checkpoint
from stargate.launch.exporting import generation_config, write_object
from stargate.resources.machine import describe_machine
from stargate.resources.preflight import build_problem

# `vllm serve` asks for a package named vllm, which the CPU build is not.
_SERVER = "vllm.entrypoints.openai.api_server"
# Of training: weights are pushed, log-probs are kept. A client has its own sampling.
_NOT_SERVED = ("weight_transfer_config", "logprobs_mode", "logits_processors", "model")
# How often a server that starts is asked, and how long one may take to end (seconds).
_LOOK_SECONDS, _END_SECONDS = 0.5, 30.0


def serve(checkpoint: Checkpoint, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until Ctrl-C or SIGTERM, which end it in order.

    Raises MachineError for a port in use or a vLLM for other devices, and EngineError for a server
    that does not start or dies.
    """
    device = _device(checkpoint.config)
    if (wrong := build_problem(device)) is not None:
        raise MachineError(wrong)
    _require_free(host, port)
    name = f"{checkpoint.config.name}-{checkpoint.name}"
    log = checkpoint.run_dir / "logs" / "serve.log"
    log.parent.mkdir(exist_ok=True)
    say(f"starting {name}; what vLLM says: {log}")
    with tempfile.TemporaryDirectory(prefix="stargate-serve-") as folder, _sigterm_as_interrupt():
        command = server_command(checkpoint, Path(folder), device, host, port, name)
        with log.open("w", encoding="utf-8") as output:
            server = subprocess.Popen(
                command,
                env=server_environment(checkpoint, device),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through us alone, once
            )
        try:
            _await_ready(server, host, port)
            if server.poll() is None:
                say(f"ready: http://{host}:{port}/v1, model {name}; Ctrl-C ends it")
            code = server.wait()
        except KeyboardInterrupt:
            say("stopping ...")
            return
        finally:
            _end(server)
    cause = first_exception(log.read_text(encoding="utf-8", errors="replace"))
    raise EngineError(f"the server ended: {cause or f'exit code {code}'} (log: {log})")


def server_command(
    checkpoint: Checkpoint, folder: Path, device: Device, host: str, port: int, name: str
) -> list[str]:
    """The server's command line; what it reads beside the model's own folder goes into `folder`."""
    template = folder / "chat_template.jinja"
    template.write_text(checkpoint.template(), encoding="utf-8")
    write_object(folder / "generation_config.json", generation_config(checkpoint))
    arguments = engine_arguments(_spec(checkpoint, device))
    options: dict[str, Any] = {
        **{key: value for key, value in arguments.items() if key not in _NOT_SERVED},
        "model": str(checkpoint.folder),
        "served_model_name": name,
        "chat_template": str(template),
        "generation_config": str(folder),
        "host": host,
        "port": port,
    }
    command = [sys.executable, "-m", _SERVER]
    for key, value in options.items():
        option = key.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        else:
            command += [f"--{option}", str(value)]
    return command


def _spec(checkpoint: Checkpoint, device: Device) -> EngineSpec:
    config = checkpoint.config
    return EngineSpec(
        role="questioner",
        model_dir=str(checkpoint.folder),
        config=config.questioner.engine,
        seed=config.seed,
        device=device,
        trust_remote_code=config.trust_remote_code,
    )


def server_environment(checkpoint: Checkpoint, device: Device) -> dict[str, str]:
    """What the server's process finds in its environment: as an engine of the run has it."""
    environment = os.environ | engine_environment(_spec(checkpoint, device))
    environment |= {"PATH": path_with_venv(), "VLLM_RPC_BASE_PATH": socket_folder()}
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the config's size
    return environment


def _device(config: RunConfig) -> Device:
    return "cuda" if config.device != "cpu" and describe_machine().gpus else "cpu"


def _require_free(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"--port must be 1 to 65535, got {port}")
    try:
        with socket.create_server((host, port), reuse_port=False):
            pass
    except OSError as error:
        said = str(error.strerror).partition(" (while")[0]  # Python adds the address once more
        raise MachineError(f"{host}:{port}: {said}; choose another --port or --host") from error


def _await_ready(server: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Returns when the server answers, or has ended."""
    address = "127.0.0.1" if host == "0.0.0.0" else host
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a proxy
    while server.poll() is None:
        try:
            with opener.open(f"http://{address}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_LOOK_SECONDS)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Asks the server to end, then forces it and what it started, at once if Ctrl-C comes again."""
    try:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                server.wait(_END_SECONDS)
    finally:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the server as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
