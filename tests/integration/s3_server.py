"""Servers on loopback, S3's (moto) among them, for tests that need the real protocol."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_START_SECONDS = 60.0


def server_command() -> list[str] | None:
    """How moto is started here; None if it is not installed."""
    if find_spec("moto") is not None and find_spec("flask_cors") is not None:
        return [sys.executable, "-m", "moto.server"]
    found = shutil.which("moto_server")  # from an environment of its own
    return None if found is None else [found]


@contextmanager
def s3_server(log: Path, port: int | None = None) -> Iterator[str]:
    """Runs one; yields HOST:PORT. What it holds goes with it."""
    start = server_command()
    assert start is not None

    def command(port: int) -> list[str]:
        return [*start, "-H", "127.0.0.1", "-p", str(port)]

    with loopback_server(command, "http://{}/moto-api/".format, log, port) as address:
        yield address


@contextmanager
def loopback_server(
    command: Callable[[int], list[str]],
    question: Callable[[str], str | urllib.request.Request],
    log: Path,
    port: int | None = None,
) -> Iterator[str]:
    """Runs a server that is asked until it answers; yields HOST:PORT."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    with log.open("ab") as out:
        server = subprocess.Popen(command(port), stdout=out, stderr=out)
    try:
        _await_answer(question(address), server)
        yield address
    finally:
        server.kill()
        server.wait()


def _await_answer(
    question: str | urllib.request.Request, server: "subprocess.Popen[bytes]"
) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(question, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"no server after {_START_SECONDS:.0f} s")
