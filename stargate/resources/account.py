"""The account that a process runs as: a container may give any number to it, and no home folder.

Libraries ask for a name (torch, vLLM) and put caches and settings into the home folder (nearly all
of them); without these they fail, or make a folder named "~". Standard library only.
"""

import os
import pwd
import stat
import tempfile
from pathlib import Path

from stargate.errors import MachineError

# As in Python's getpass.
_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def complete_account() -> str | None:
    """Gives this process, and those that it starts, a name and a home folder where it lacks them.

    Returns a line for the user if the home folder is another one now. Raises MachineError where
    none can be made. What has been downloaded into a home folder that is only read stays in use.
    """
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        entry = None
        if not any(os.environ.get(name) for name in _NAMES):
            os.environ["USER"] = f"uid{os.getuid()}"
    home = os.environ.get("HOME") or (entry.pw_dir if entry else "")
    if os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return None
    found = Path(home, ".cache/huggingface")
    if home and found.is_dir():
        os.environ.setdefault("HF_HOME", str(found))
    os.environ["HOME"] = own = _own_folder(home)
    problem = f"HOME={home} can't be written" if home else "HOME is not set"
    return f"note: {problem}: caches go to {own}; set HOME to a folder that stays"


def _own_folder(home: str) -> str:
    """A folder that nobody else can write, the same one for all processes of this account."""
    problem = f"HOME={home!r} can't be written"
    try:
        folder = Path(tempfile.gettempdir(), f"stargate-home-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise MachineError(f"{problem}, nor can a temporary folder: {error}; set HOME") from error
    private = stat.S_IMODE(state.st_mode) & 0o077 == 0
    if not (stat.S_ISDIR(state.st_mode) and private and state.st_uid == os.getuid()):
        raise MachineError(f"{problem}, and {folder} can be changed by others; set HOME")
    return str(folder)
