"""Waits for the nodes of a Ray cluster that is just being started, aloud. For launch/slurm.sh.

python -m stargate.launch.nodes_joined COUNT SECONDS   with RAY_ADDRESS, and Ray's token

Ends with 0 when so many nodes are there, or with MachineError's code and one line that says how
many are, when the time is over.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from stargate.errors import MachineError, StargateError
from stargate.monitoring.progress import safe_text
from stargate.monitoring.waiting import Waiting

_LOOK_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    """Waits as the command line says. Returns the exit code."""
    try:
        count, seconds = int(arguments[0]), float(arguments[1])
    except (IndexError, ValueError):
        print("usage: python -m stargate.launch.nodes_joined COUNT SECONDS", file=sys.stderr)
        return 2
    try:
        await_nodes(count, seconds, _labels)
    except StargateError as error:
        print(safe_text(str(error)), file=sys.stderr)
        return error.exit_code
    return 0


def await_nodes(
    count: int,
    seconds: float,
    look: Callable[[], Sequence[str]],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns when `look` finds so many nodes. Raises MachineError when the time is over.

    `look` names the nodes that are there; a MachineError of its own means that nobody answers yet.
    """
    waiting = Waiting(partial(print, file=sys.stderr), clock)
    while True:
        there: Sequence[str] = ()
        problem = ""
        try:
            there = look()
        except MachineError as error:
            problem = f": {error}"
        if len(there) >= count:
            return
        names = f" ({', '.join(there)})" if there else problem
        if waiting.seconds >= seconds:
            raise MachineError(
                f"only {len(there)} of {count} nodes joined Ray in {seconds:.0f} s{names}"
            )
        waiting.speak(f"waiting for nodes: {len(there)} of {count} are there{names}")
        sleep(min(_LOOK_SECONDS, seconds))


def _labels() -> list[str]:
    from stargate.actors.runtime.discovery import attach, living_nodes

    attach(os.environ["RAY_ADDRESS"])
    return [node.label for node in living_nodes()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
