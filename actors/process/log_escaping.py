"""What an actor's process writes can't control the terminal on which somebody reads its log.

Python's own output only: prints, logging, tracebacks. That is where model text may appear; what C
libraries write by themselves goes past it.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from stargate.monitoring.progress import safe_text


def readable(text: str) -> str:
    """Safe text for a log: a bare carriage return, which overwrites a line, ends it instead."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    return safe_text(plain)


def escape_output() -> Callable[[], None]:
    """From now on stdout and stderr of this process escape. Returns what undoes it.

    The streams stay the same objects: loggers that were set up before hold them.
    """
    # Loggers that were set up before Ray replaced the streams hold the interpreter's own.
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    undo = [(stream, _escape(stream)) for stream in streams if stream is not None]

    def restore() -> None:
        for stream, (plain, escaped) in undo:
            # Unless somebody has put something over it meanwhile.
            if stream.write is escaped:
                stream.write = plain  # type: ignore[method-assign]

    return restore


def escape_output_of_children() -> None:
    """In a process that another one of ours has started, `escape_output`; elsewhere nothing."""
    if multiprocessing.parent_process() is not None:
        escape_output()


def _escape(stream: TextIO) -> tuple[Callable[[str], int], Callable[[str], int] | None]:
    """How the stream writes without and with escaping; None if it escaped already."""
    write = stream.write
    if getattr(write, "escapes", False):
        return write, None

    def escaped(text: str) -> int:
        write(readable(text))
        return len(text)

    escaped.escapes = True  # type: ignore[attr-defined]
    stream.write = escaped  # type: ignore[method-assign]
    return write, escaped


def redirect_output(log_file: str | None) -> None:
    """Sends all that this process prints, also from C++, to `log_file`. None leaves it alone.

    What Python prints is escaped there: logs are read on terminals, and may quote a model.
    """
    if log_file is None:
        return
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    escape_output()
