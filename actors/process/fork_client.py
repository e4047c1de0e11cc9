"""Stands for a Python process that a fork server forks (fork_server.py).

    SERVER arguments...   as `python arguments...`, with imports already done

Whoever starts it (Ray's raylet, multiprocessing) sees a child of its own: it ends as the forked
process ends, passes SIGTERM on, and takes the process with it when it is killed. Python is run the
usual way for anything that is neither an actor's process nor a spawned one, and where no server
answers. Run by path, without site-packages: it imports nothing of ours.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

# Bytes of the length that stands before a request, and of the server's answers.
NUMBER_BYTES = 8
# Ray's actors, and multiprocessing's spawned processes.
_SCRIPT = "default_worker.py"
_SPAWNED = "multiprocessing.spawn"


def main(server: str, arguments: Sequence[str]) -> None:
    """Ends this process, as the forked one ended."""
    if forked := _forked(arguments):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(server)
            if pid := _hand_over(connection, forked):
                _end(_wait(connection, pid))
    os.execv(sys.executable, [sys.executable, *arguments])


def _forked(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments without the interpreter's own, if it is to be forked; they are the server's."""
    if "-c" in arguments and _SPAWNED in (spawned := arguments[arguments.index("-c") :])[1]:
        return spawned
    return arguments if arguments[0].endswith(_SCRIPT) else ()


def _hand_over(connection: socket.socket, arguments: Sequence[str]) -> int:
    """Gives all that this process has to a forked one. Returns its id, 0 if there is none."""
    files = [int(name) for name in os.listdir("/proc/self/fd")]
    own = connection.fileno()  # the listing's own file is closed by now
    files = [fd for fd in files if fd != own and os.path.exists(f"/proc/self/fd/{fd}")]
    request = {
        "arguments": list(arguments),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": files,
        "group": os.getpgid(0),
    }
    data = json.dumps(request).encode()
    socket.send_fds(connection, [len(data).to_bytes(NUMBER_BYTES)], files)
    connection.sendall(data)
    pid = int.from_bytes(connection.recv(NUMBER_BYTES))
    if pid:  # whoever waits until a file is closed waits for that process, not for this one
        for fd in filter(lambda fd: fd > 2, files):
            os.close(fd)
    return pid


def _wait(connection: socket.socket, pid: int) -> int:
    """The wait status of the forked process once it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its whole group gets it
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])
    with contextlib.suppress(ConnectionError):
        if answer := connection.recv(NUMBER_BYTES):
            return int.from_bytes(answer)
    return 1 << 8  # the server is gone, and with it the status


def _end(status: int) -> None:
    """Ends as the process did that had this wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
