"""What several sides of a benchmark have in common: turns, and processes of their own.

    parent                        child: imports, loads, warms up
      side.answer()          <--  what it has to say once it is ready
      side.ask(request)      -->  works  --> its answer

While one side works the others wait in a pipe, so that all of them meet the same machine.
"""

import multiprocessing
import os
import pkgutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from stargate.errors import EngineError

# Seconds within which a side must answer: starting an engine, or minutes of work on a CPU.
_DEADLINE_S = 900.0
# Seconds that a side has to end: an engine needs some.
_STOP_S = 60.0

_Side = TypeVar("_Side")


def in_turn(sides: Sequence[_Side], rounds: int) -> Iterator[tuple[int, _Side]]:
    """(round, side): every side once a round; who begins changes from round to round."""
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            yield number, side


class SideProcess:
    """One side in its process. Close it whatever happens."""

    def __init__(
        self, name: str, play: str, job: Any, log_file: str, environment: Mapping[str, str]
    ) -> None:
        """`play`, as "module:function", is called in the child with `job` and its end of the pipe,
        and ends by the EOFError of that pipe. `environment` is there from the process's start.
        """
        self._name, self._log_file = name, log_file
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Not a daemon: vLLM starts processes of its own.
        self._process = context.Process(target=_serve, args=(name, play, job, theirs, log_file))
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    def ask(self, request: Any) -> Any:
        """Gives it work, and waits for the answer."""
        self.send(request)
        return self.answer()

    def send(self, request: Any) -> None:
        """Gives it work; `answer` waits for the result."""
        self._pipe.send(request)

    def answer(self) -> Any:
        """What it says next. Raises EngineError if it failed, died or takes too long."""
        if not self._pipe.poll(_DEADLINE_S):
            raise EngineError(f"{self._name} has not answered in {_DEADLINE_S:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise EngineError(
                f"the process of {self._name} has died; see {self._log_file}"
            ) from error
        if isinstance(answer, EngineError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the process, and waits for it."""
        self._pipe.close()
        self._process.join(timeout=_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(name: str, play: str, job: Any, pipe: Connection, log_file: str) -> None:
    """The child's whole life."""
    try:
        from stargate.actors.process.log_escaping import redirect_output

        redirect_output(log_file)
        pkgutil.resolve_name(play)(job, pipe)
    except EOFError:
        pass  # the parent has closed its end: that is how it ends this
    except Exception as error:  # whatever it is, the parent is the one to hear it
        traceback.print_exc()
        pipe.send(EngineError(f"{name} failed: {type(error).__name__}: {error}"))
