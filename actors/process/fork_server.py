"""Imports once what actors import, and forks their processes from there.

    driver -> fork server: imports torch, vLLM and DeepSpeed while Ray starts
    Ray or vLLM -> SCRIPT arguments... (fork_client.py) -> the server forks -> the process

Importing takes each process 4 to 8 s of a core, and an engine has two, the second started by the
first. The server has one thread, so a fork has all of it; OpenMP starts its threads in the forked
processes. On CPUs only: what a GPU's driver has set up is lost in a fork.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import re
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from stargate.actors.process import fork_client
from stargate.actors.process.fork_client import NUMBER_BYTES
from stargate.actors.process.heap import ONE_HEAP, follow_tunables, heap_environment
from stargate.actors.process.paths import socket_folder

# The variable in which a forked process finds the script, to start processes of its own.
FORKING_PYTHON = "STARGATE_FORKING_PYTHON"
# Connections that wait while modules are imported.
_BACKLOG = 128
# Files that a process is given at most; Linux sends no more at once.
_MAX_FILES = 250
# Files are first moved beyond all numbers that they are to have.
_FIRST_FREE = 500


@contextlib.contextmanager
def forking_python(modules: Sequence[str], environment: Mapping[str, str]) -> Iterator[str | None]:
    """A script that stands for `python`, and starts actors' processes with these modules imported.

    The server behind it ends with the block, or with this process. None where processes must start
    anew: OpenMP reads its variables when it is loaded (the number of threads can be set later), a
    preloaded library may be another OpenMP, and no script can be run from a folder mounted so.
    """
    if sys.platform != "linux" or any(map(_needs_a_start, os.environ)):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="stargate-", dir=socket_folder()) as folder:
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            yield None
            return
        address, script = Path(folder, "socket"), Path(folder, "python")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(_BACKLOG)
            server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno()), *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                env={
                    **os.environ,
                    **environment,
                    **heap_environment(ONE_HEAP, "cpu"),
                    "OMP_NUM_THREADS": "1",
                },
            )
        client = [sys.executable, "-ISs", fork_client.__file__, str(address)]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
        script.chmod(0o700)
        try:
            yield str(script)
        finally:
            server.communicate()


def _needs_a_start(variable: str) -> bool:
    openmp = variable.startswith(("OMP_", "GOMP_", "KMP_")) and variable != "OMP_NUM_THREADS"
    return openmp or variable == "LD_PRELOAD"


@dataclass(frozen=True)
class Request:
    """What a forked process is to be: `python arguments...`, as a client would run it.

    `files` are the client's open files; the process has them under these numbers.
    """

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]
    group: int  # of processes: Ray ends an actor's group


@dataclass(eq=False)
class Child:
    """A forked process, and the client that stands for it; None once it has gone."""

    pid: int
    end: int  # becomes readable when the process ends
    client: socket.socket | None


@dataclass
class ForkServer:
    """Serves clients until `lifeline` ends."""

    listener: socket.socket
    lifeline: int
    children: list[Child] = field(default_factory=list)

    def serve(self) -> tuple[Request, list[int]] | None:
        """None at the end; in each forked process what it is to be, and the files it was given."""
        while True:
            clients = {child.client.fileno(): child for child in self.children if child.client}
            ends = {child.end: child for child in self.children}
            poll = select.poll()
            for fd in (self.listener.fileno(), self.lifeline, *clients, *ends):
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == self.lifeline:
                    return None
                if fd in clients:
                    self._client_gone(clients[fd])
                elif fd in ends:
                    self._reap(ends[fd])
                elif (given := self._fork()) is not None:
                    return given

    def _fork(self) -> tuple[Request, list[int]] | None:
        client, _ = self.listener.accept()
        header, files, _, _ = socket.recv_fds(client, NUMBER_BYTES, _MAX_FILES)
        with client.makefile("rb") as stream:
            data = stream.read(int.from_bytes(header))
        if len(header) < NUMBER_BYTES or len(data) < int.from_bytes(header):  # it was killed
            client.close()
            pid = -1
        else:
            pid = os.fork()
        if pid == 0:
            self._close(client)
            return Request(**json.loads(data)), files
        for fd in files:
            os.close(fd)
        if pid > 0:
            self.children.append(Child(pid, os.pidfd_open(pid), client))
            with contextlib.suppress(OSError):  # it was killed: its end is seen next
                client.sendall(pid.to_bytes(NUMBER_BYTES))
        return None

    def _client_gone(self, child: Child) -> None:
        """Whoever kills the client means the process."""
        assert child.client is not None
        child.client.close()
        child.client = None
        if child in self.children:
            os.kill(child.pid, signal.SIGKILL)

    def _reap(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        self.children.remove(child)
        os.close(child.end)
        if child.client is not None:
            with contextlib.suppress(OSError):  # it was killed at the same moment
                child.client.sendall(status.to_bytes(NUMBER_BYTES))
            child.client.close()

    def _close(self, client: socket.socket) -> None:
        """In a forked process: what is the server's."""
        client.close()
        self.listener.close()
        os.close(self.lifeline)
        for child in self.children:
            os.close(child.end)
            if child.client is not None:
                child.client.close()


def become(request: Request, files: Sequence[int]) -> None:
    """Makes this process what `python arguments...` would be, and runs it."""
    os.setpgid(0, request.group)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_FREE) for fd in files]
    for fd in files:
        os.close(fd)
    for fd, number in zip(moved, request.files, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    if request.arguments[0] == "-c":
        _find_title()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    follow_tunables()
    _follow_openmp()
    _run(request.arguments)


def _find_title() -> None:
    """For vLLM, which names its processes; where the name is can't be found in another environment.

    Not for Ray, which finds it in its own way, and does not once this has been done.
    """
    with contextlib.suppress(ImportError):  # vLLM does without it
        importlib.import_module("setproctitle").getproctitle()


def _follow_openmp() -> None:
    """Does what OpenMP does with its variables when it is loaded, before it has any threads."""
    if (torch := sys.modules.get("torch")) and (threads := os.environ.get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))
    # One place, as vLLM writes it: all threads may use all of its cores.
    if place := re.fullmatch(r"\{([\d,]+)\}", os.environ.get("OMP_PLACES", "")):
        os.sched_setaffinity(0, map(int, place[1].split(",")))


def _run(arguments: Sequence[str]) -> None:
    first, *rest = arguments
    sys.argv = [first, *rest]
    if first != "-c":
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")
        return
    sys.path[0] = ""
    sys.argv = [first, *rest[1:]]
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(rest[0], main.__dict__)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver says when actors end
    listener = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # a fifth of the time that imports take
    # Ray reads its settings while it is imported, so each process imports its own; vLLM does
    # without where it is not there, and its Ray executor is not ours.
    sys.modules["ray"] = None  # type: ignore[assignment]  # typeshed knows modules only
    for module in sys.argv[2:]:
        importlib.import_module(module)
    del sys.modules["ray"]
    gc.freeze()
    if (given := ForkServer(listener, sys.stdin.fileno()).serve()) is not None:
        become(*given)


if __name__ == "__main__":
    _main()
