"""What a person sees while a run goes on: stage, how many of how many, tokens/s, time left.

On a terminal a live line per stage; otherwise plain lines, one when a stage begins and ends and one
every few seconds between, so that a log stays readable. Model text that is shown has its control
characters escaped.
"""

import logging
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# Seconds between plain lines of one stage: enough to see that it lives, few enough to read the log.
_PLAIN_INTERVAL = 10.0


class Stage(Protocol):
    """A stage. It is shown, and its clock runs, from `begin` on or from the first `advance`."""

    def begin(self) -> None: ...
    def advance(self, count: int = 1, tokens: int = 0) -> None: ...
    def note(self, text: str) -> None: ...


class Progress(Protocol):
    """Where stages are shown."""

    def stage(self, name: str, total: int, unit: str) -> AbstractContextManager[Stage]: ...
    def say(self, text: str) -> None: ...


def safe_text(text: str) -> str:
    """Text that can't move a terminal's cursor, colour it or reverse its direction:

    such characters are escaped, as Python writes them. Line breaks stay. Twice is as good as once.
    """
    return "".join(map(_escaped, text))


def encodable(text: str, out: IO[str]) -> str:
    """Text that a terminal or file of another encoding takes: what it lacks is escaped."""
    encoding = getattr(out, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(character: str) -> str:
    # Control, format (direction marks among them), surrogate and private-use characters, and the
    # separators of lines and paragraphs, which some terminals take as line breaks.
    categories = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    if character == "\n" or unicodedata.category(character) not in categories:
        return character
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def logged(say: Callable[[str], None], name: str) -> Callable[[str], None]:
    """`say`, also into a module's log: as a warning, a run's log takes nothing below."""
    log = logging.getLogger(name)

    def tell(text: str) -> None:
        log.warning("%s", text)
        say(text)

    return tell


class PlainProgress:
    """Lines for logs and pipes. Control characters are escaped here, whoever speaks."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def say(self, text: str) -> None:
        print(encodable(safe_text(text), self._out), file=self._out, flush=True)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator["_PlainStage"]:
        stage = _PlainStage(self, name, total, unit)
        yield stage
        stage.finish()


class _PlainStage:
    def __init__(self, progress: PlainProgress, name: str, total: int, unit: str) -> None:
        self._progress = progress
        self._name, self._total, self._unit = name, total, unit
        self._done = self._tokens = 0
        self._note = ""
        self._started: float | None = None
        self._shown = 0.0
        self._finished = False

    def begin(self) -> None:
        if self._started is None:
            self._started = self._shown = time.monotonic()
            self._progress.say(f"{self._name}: {self._total} {self._unit}")

    def advance(self, count: int = 1, tokens: int = 0) -> None:
        self.begin()
        self._done += count
        self._tokens += tokens
        if self._done >= self._total:
            self.finish()
        elif time.monotonic() - self._shown >= _PLAIN_INTERVAL:
            self._shown = time.monotonic()
            self._progress.say(f"{self._name}: {self._status()}")

    def note(self, text: str) -> None:
        self._note = text

    def finish(self) -> None:
        """Says once how it ended; nothing if it never began."""
        if self._started is None or self._finished:
            return
        self._finished = True
        seconds = time.monotonic() - self._started
        self._progress.say(f"{self._name}: done in {seconds:.1f} s, {self._status()}")

    def _status(self) -> str:
        assert self._started is not None
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = [f"{self._done}/{self._total} {self._unit}"]
        if self._tokens:
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        if 0 < self._done < self._total:
            parts.append(f"{seconds / self._done * (self._total - self._done):.0f} s left")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)


class LiveProgress:
    """A live bar per stage on a terminal, drawn by rich. Stages that run side by side share it."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._bars: RichProgress | None = None
        self._num_open = 0

    def say(self, text: str) -> None:
        text = encodable(safe_text(text), self._console.file)
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator["_LiveStage"]:
        if self._bars is None:
            from rich import progress as rich

            self._bars = rich.Progress(
                rich.TextColumn("{task.description:<16}", markup=False),
                rich.BarColumn(bar_width=20),
                rich.MofNCompleteColumn(),
                rich.TextColumn("{task.fields[unit]} {task.fields[rate]}", markup=False),
                rich.TimeElapsedColumn(),
                rich.TextColumn("left"),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._bars.start()
        self._num_open += 1
        bars = self._bars
        task = bars.add_task(name, start=False, total=total, unit=unit, rate="", note="")
        try:
            yield _LiveStage(bars, task)
        finally:
            bars.stop_task(task)
            self._num_open -= 1
            if self._num_open == 0:
                bars.stop()  # the finished bars stay on the screen, the next stages get new ones
                self._bars = None


class _LiveStage:
    def __init__(self, bars: "RichProgress", task: "TaskID") -> None:
        self._bars = bars
        self._task = task
        self._tokens = 0
        self._started: float | None = None

    def begin(self) -> None:
        if self._started is None:
            self._started = time.monotonic()
            self._bars.start_task(self._task)

    def advance(self, count: int = 1, tokens: int = 0) -> None:
        self.begin()
        self._tokens += tokens
        if self._tokens and self._started is not None:
            rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
            self._bars.update(self._task, rate=f"{rate:,.0f} tokens/s")
        self._bars.update(self._task, advance=count)

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=safe_text(text))


def make_progress() -> Progress:
    """Live on a terminal, plain lines otherwise."""
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
