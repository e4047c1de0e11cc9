"""What an engine asks of the operating system: a place for noise, enough memory, an orderly end."""

import os
import re
import sys
from pathlib import Path

import psutil

from stargate.actors.runtime.log_escaping import escape_output
from stargate.errors import MachineError

# How long vLLM's processes may take to end by themselves; torch alone needs some (seconds).
END_SECONDS = 20.0
# How long they may take to obey a signal (seconds).
SIGNAL_SECONDS = 5.0

# "ValueError: ..." at the end of a traceback, behind vLLM's own prefixes.
_EXCEPTION = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception)): (\S.*)$")
# vLLM's outer processes only say that an inner one failed.
_NOT_A_CAUSE = re.compile(r"initialization failed|See (root cause|stack trace)", re.IGNORECASE)
_MEMORY = re.compile(
    r"out of memory|available memory|can(no|')t allocate|MemoryError", re.IGNORECASE
)


class NoiseLog:
    """Sends file descriptors 1 and 2 of this process to a file until `close`.

    Processes that are started meanwhile inherit them. What Python writes here is escaped meanwhile.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _flush()
        log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._start = os.fstat(log).st_size
        self._saved = {target: os.dup(target) for target in (1, 2)}
        for target in self._saved:
            os.dup2(log, target)
        os.close(log)
        self._plain_again = escape_output()

    def root_cause(self) -> str | None:
        """The first exception in the log, as one line: in vLLM's nested processes, the cause."""
        _flush()
        with self.path.open("rb") as stream:
            stream.seek(self._start)
            return first_exception(stream.read().decode("utf-8", errors="replace"))

    def close(self) -> None:
        """Gives the descriptors back."""
        _flush()
        self._plain_again()
        for target, saved in self._saved.items():
            os.dup2(saved, target)
            os.close(saved)
        self._saved = {}


def first_exception(log: str) -> str | None:
    """The first line of a log that names an exception and its text: "ValueError: ..."."""
    for line in log.splitlines():
        found = _EXCEPTION.search(line)
        if found and not _NOT_A_CAUSE.search(line):
            return f"{found[1].rpartition('.')[2]}: {found[2].strip()}"
    return None


def is_about_memory(cause: str) -> bool:
    """Whether an error text says that memory ran out."""
    return _MEMORY.search(cause) is not None


def check_memory(needed_gb: float, what: str) -> None:
    """Raises MachineError when less than `needed_gb` (1e9 bytes) of memory is available."""
    available_gb = psutil.virtual_memory().available / 1e9
    if available_gb < needed_gb:
        raise MachineError(
            f"{what}: needs about {needed_gb:.1f} GB of memory, {available_gb:.1f} GB are free; "
            "close other programs or lower engine.cpu_kv_cache_gb"
        )


def child_processes() -> set[psutil.Process]:
    """All processes below this one, but Python's resource tracker, which ends with this one."""
    return {
        child
        for child in psutil.Process().children(recursive=True)
        if not _is_resource_tracker(child)
    }


def end_processes(processes: set[psutil.Process]) -> None:
    """Waits for processes to end, then asks them to, then forces them. Blocks up to 30 s."""
    _, alive = psutil.wait_procs(list(processes), timeout=END_SECONDS)
    for process in alive:
        process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=SIGNAL_SECONDS)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=SIGNAL_SECONDS)


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:  # it has ended
        return True


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
