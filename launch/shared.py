"""What commands share: counts, the argument RUN (it may be an address), interruptions."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stargate.monitoring.progress import Progress


def positive(text: str) -> int:
    """A count, for argparse."""
    return not_negative(text, least=1)


def not_negative(text: str, least: int = 0) -> int:
    """A count that may be 0, for argparse."""
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
    return number


def add_run_argument(parser: argparse.ArgumentParser, *, writes: bool) -> None:
    """RUN, which may be an address, and what belongs to that."""
    parser.add_argument(
        "run", metavar="RUN", help="a run directory, or its address on shared storage (s3://...)"
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="of an address: the folder that it is fetched into (default: runs/NAME)",
    )
    if writes:
        parser.add_argument(
            "--take-over",
            action="store_true",
            help="go on although another driver was seen at this address lately; it must be dead",
        )


def add_accept_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-changed",
        action="store_true",
        help="go on although models, data or prompts are not what was recorded (provenance.json)",
    )


def add_gpus_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--assume-gpus",
        metavar="COUNTxGIB",
        help="pretend a machine, e.g. 8x80 or 1x24; several nodes: 8x80,8x80",
    )


def local_run(args: argparse.Namespace, *, models: bool) -> Path:
    """The folder of args.run; of an address, the folder that it was fetched into just now.

    Raises StargateError, for a command that writes also if another driver works at that address.
    """
    from stargate.config.uri import is_uri, parse_uri, run_name
    from stargate.errors import ConfigError

    if not is_uri(args.run):
        if args.to is not None:
            raise ConfigError("--to is for a run on shared storage; RUN is a folder")
        return Path(args.run)
    from stargate.monitoring.progress import make_progress
    from stargate.remote.fetch import fetch
    from stargate.remote.lease import Lease
    from stargate.remote.storage import open_storage

    uri = parse_uri(args.run)
    root = args.to or Path("runs") / run_name(uri)
    progress, storage = make_progress(), open_storage(uri)
    if not getattr(args, "take_over", True):
        Lease(storage, "").require_free()
    fetched = fetch(storage, root, progress.say, models=models)
    for name, problem, place in fetched.damaged:
        progress.say(f"damaged: {storage}: {name}: {problem}; set aside as {place}")
    late = "" if fetched.is_complete else "; its driver had more that had not landed"
    progress.say(
        f"fetched {fetched.num_files} files, {fetched.num_bytes / 2**20:,.1f} MiB, into {root}"
        f"{late}"
    )
    return root


@contextmanager
def interruptible(progress: "Progress", advice: str) -> Iterator[None]:
    """Says the advice after Ctrl-C or SIGTERM, and raises Interrupted."""
    import asyncio

    from stargate.errors import Interrupted

    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress.say(advice)
        raise Interrupted from None
