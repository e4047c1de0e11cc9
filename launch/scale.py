"""Add engines to a run that goes on, or take some away.

The run looks for such a request every second while its engines play. Engines that join start beside
the others, which go on, and hold the current weights before their first request. Engines that leave
(the last ones of their role) get no new requests, end those that they have, and are ended; at least
one of each role stays. What there is no room for is refused with a line, and nothing changes.

The command waits until all of it is done. Ctrl-C ends only the waiting. A run that is resumed later
begins with the engines of its config again.

examples:
  stargate scale runs/paper-20261123-120000 questioner=3 roleplayer=2
  stargate scale runs/paper-20261123-120000 questioner=1 --no-wait
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stargate.errors import DataError, MachineError

if TYPE_CHECKING:
    from stargate.resources.scale_request import ScaleAnswer, ScaleRequest

# Seconds that a run has to take a request: it looks every second.
TAKE_SECONDS = 30.0
# Seconds between looks at what the run answers.
_LOOK_SECONDS = 0.5


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a run")
    parser.add_argument(
        "engines",
        nargs="+",
        metavar="ROLE=COUNT",
        help="questioner=N or roleplayer=N: how many engines the role shall have",
    )
    parser.add_argument(
        "--no-wait", action="store_true", help="return as soon as the run has taken the request"
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0 when it is done, or taken with --no-wait. Raises StargateError."""
    from stargate.monitoring.progress import PlainProgress
    from stargate.resources.scale_request import parse_engines, send_request

    root: Path = args.run
    engines = parse_engines(args.engines)
    _check_goes_on(root)
    request = send_request(root, engines)
    say = PlainProgress().say
    first = await_taken(root, request)
    say(first.message)
    if first.state == "working" and not args.no_wait:
        say(await_done(root, request))
    return 0


def _check_goes_on(root: Path) -> None:
    """Raises DataError unless a process works on the run."""
    from stargate.records.files import is_held, read_json

    if (root / "ablation.json").is_file():
        raise DataError(f"{root}: is an ablation; its engines can't be changed while it goes on")
    if not (root / "config.yaml").is_file():
        raise DataError(f"{root}: not a run directory: it has no config.yaml")
    if not is_held(root):
        if (read_json(root / "summary.json") or {}).get("status") == "finished":
            raise DataError(f"{root}: has finished; there are no engines to change")
        raise DataError(
            f"{root}: no process works on it; `stargate resume {root}` goes on with it, then its "
            "engines can be changed"
        )


def await_taken(root: Path, request: "ScaleRequest") -> "ScaleAnswer":
    """What the run says first; it may be done already.

    Raises MachineError if it takes no request, or refuses this one.
    """
    from stargate.resources.scale_request import withdraw_request

    deadline = time.monotonic() + TAKE_SECONDS
    while True:
        held, found = _look(root, request)
        if found is not None:
            return found
        if not held:
            withdraw_request(root)
            raise MachineError(f"{root}: the run ended before it took the request")
        if time.monotonic() >= deadline and withdraw_request(root):
            raise MachineError(
                f"{root}: the run took no request in {TAKE_SECONDS:.0f} s: its engines have not "
                "started yet, or it is ending, or is no training run; try again later"
            )
        if time.monotonic() >= 2 * TAKE_SECONDS + deadline:
            raise MachineError(f"{root}: the run took the request and says nothing; see its log")
        time.sleep(_LOOK_SECONDS)


def await_done(root: Path, request: "ScaleRequest") -> str:
    """What the run says last. Raises MachineError if it could not do it, or has ended."""
    while True:
        held, found = _look(root, request)
        if found is None:
            raise MachineError(f"{root}: another request was answered meanwhile; see the run's log")
        if found.state == "done":
            return found.message
        if not held:
            raise MachineError(f"{root}: the run has ended before it was done")
        time.sleep(_LOOK_SECONDS)


def _look(root: Path, request: "ScaleRequest") -> "tuple[bool, ScaleAnswer | None]":
    """Whether a process holds the run, and then its answer: its last comes before it lets go."""
    from stargate.records.files import is_held
    from stargate.resources.scale_request import read_answer

    held = is_held(root)
    found = read_answer(root, request)
    if found is not None and found.state == "refused":
        raise MachineError(f"refused: {found.message}")
    return held, found
