"""What an actor's process writes can't control the terminal on which somebody reads its log.

Python's own output only: prints, logging, tracebacks. That is where model text may appear; what C
libraries write by themselves goes past it.
"""

import multiprocessing
import sys
from collections.abc import Callable
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
    undo = [_escape(stream) for stream in (sys.stdout, sys.stderr)]

    def restore() -> None:
        for one in undo:
            one()

    return restore


def escape_output_of_children() -> None:
    """In a process that another one of ours has started, `escape_output`; elsewhere nothing."""
    if multiprocessing.parent_process() is not None:
        escape_output()


def _escape(stream: TextIO) -> Callable[[], None]:
    write = stream.write
    if getattr(write, "escapes", False):
        return _nothing

    def escaped(text: str) -> int:
        write(readable(text))
        return len(text)

    escaped.escapes = True  # type: ignore[attr-defined]
    stream.write = escaped  # type: ignore[method-assign]

    def restore() -> None:
        # Unless somebody has put something over it meanwhile.
        if stream.write is escaped:
            stream.write = write  # type: ignore[method-assign]

    return restore


def _nothing() -> None:
    """There is nothing to undo."""
