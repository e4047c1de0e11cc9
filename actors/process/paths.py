"""Where a process finds the programs that its libraries call, and puts their sockets."""

import os
import sys
import tempfile
from pathlib import Path

from stargate.errors import MachineError

# A socket's name has 107 bytes; "/ray/session_<date>_<time>_<pid>/sockets/plasma_store" takes 68.
_MAX_LENGTH = 107 - 68
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def path_with_venv() -> str:
    """PATH with our interpreter's folder first.

    A virtual environment that is not activated is not on it, but its ninja is wanted: DeepSpeed,
    FlashInfer and torch compile with it.
    """
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def socket_folder() -> str:
    """A folder whose sockets the system can name: TMPDIR where it fits, else a short one.

    Ray's names are 68 characters longer than it, and a socket's may have 107; Ray and zmq take
    ASCII only. Raises MachineError where there is none.
    """
    candidates = (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), *_SHORT_FOLDERS)
    for folder in candidates:
        if folder and folder.isascii() and len(folder) <= _MAX_LENGTH and _is_writable(folder):
            return folder
    raise MachineError(
        f"no folder for sockets: set TMPDIR to one that can be written, with at most {_MAX_LENGTH} "
        f"ASCII characters; tried {', '.join(sorted({c for c in candidates if c}))}"
    )


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
