"""Where an actor's process finds the programs that its libraries call."""

import os
import sys
from pathlib import Path


def path_with_venv() -> str:
    """PATH with our interpreter's folder first.

    A virtual environment that is not activated is not on it, but its ninja is wanted: DeepSpeed,
    FlashInfer and torch compile with it.
    """
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
