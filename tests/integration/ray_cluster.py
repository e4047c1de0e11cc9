"""A Ray cluster of several nodes on this machine: raylets of their own, with a token."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from stargate.resources.machine import free_port

START_SECONDS = 120  # 10 on an idle machine
_BIN = Path(sys.executable).parent


@dataclass
class RayCluster:
    """`address` is for `ray.init`, `dashboard` for jobs. `nodes` are processes; 0 is the head."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # What the nodes print. Not in `folder`, which is Ray's own.
    output: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to be let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start(self, num_cpus: int, *, dashboard: bool = False) -> None:
        """Starts one more node. The first one is the head."""
        ray = [str(_BIN / "ray"), "start", "--block", f"--num-cpus={num_cpus}", "--num-gpus=0"]
        ray += ["--node-ip-address=127.0.0.1", "--object-store-memory=150000000"]
        ray += ["--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}"]
        # A folder of its own, as on a machine of its own: a node that sets up a job's working
        # directory first removes what is there, which would be the one that the job runs in.
        ray += [f"--temp-dir={self.folder / str(len(self.nodes))}"]
        if self.nodes:
            ray += [f"--address={self.address}"]
        else:
            ray += ["--head", f"--port={self.port}"]
            ray += [f"--ray-client-server-port={free_port()}"]
            ray += [f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1"]
            ray += [f"--dashboard-port={self.dashboard_port}"]
        environment = {
            **os.environ,
            **self.environment,
            "PATH": f"{_BIN}:{os.environ['PATH']}",
        }
        self.nodes.append(
            subprocess.Popen(
                ray,
                env=environment,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        if len(self.nodes) == 1:
            self._await(f"nobody listens on {self.port}", self._listens)
            if dashboard:
                self._await("no job server", self._serves)

    def end(self, number: int, *, kill: bool = False) -> None:
        """Ends a node: in order, or with all of its processes at once."""
        node = self.nodes[number]
        if kill:
            os.killpg(node.pid, signal.SIGKILL)
        else:
            node.send_signal(signal.SIGTERM)
        try:
            node.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()

    def _said(self) -> str:
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def _await(self, problem: str, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.nodes[0].poll() is None, self._said()
            try:
                if there():
                    return
            except OSError:
                pass  # not yet
            time.sleep(0.2)
        raise AssertionError(f"{problem} after {START_SECONDS} s")

    def _listens(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        return True

    def _serves(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 401  # it is up, and wants the token


@contextmanager
def ray_cluster(num_cpus: Sequence[int], *, dashboard: bool = False) -> Iterator[RayCluster]:
    """A cluster with a node for each number of CPUs, ended by its processes, nothing else is."""
    with tempfile.TemporaryDirectory(prefix="sg") as folder:  # short: Ray's sockets lie in it
        cluster = RayCluster(Path(folder))
        try:
            for count in num_cpus:
                cluster.start(count, dashboard=dashboard)
            yield cluster
        finally:
            for number in reversed(range(len(cluster.nodes))):
                cluster.end(number)
            cluster.output.close()
