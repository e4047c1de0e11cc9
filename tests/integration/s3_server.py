"""An S3 server on loopback (moto), for tests that need the real protocol."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
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
    command = server_command()
    assert command is not None
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    with log.open("ab") as out:
        server = subprocess.Popen(
            [*command, "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    try:
        _await_answer(f"http://127.0.0.1:{port}/moto-api/", server)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _await_answer(address: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, "the S3 server ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"no S3 server after {_START_SECONDS:.0f} s")
