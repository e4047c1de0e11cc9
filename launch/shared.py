"""What commands share: a run's records and shared storage (check, land, fetch); interruptions.

run, resume, eval    check_records, then interruptible(...) and landing(...) around the work
resume, eval, report   local_run: an address becomes a folder
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stargate.config.run import RunConfig
    from stargate.monitoring.progress import Progress


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


def check_records(config: "RunConfig") -> None:
    """Raises StargateError if `records.uri` can't be written, before anything starts."""
    from stargate.config.uri import parse_uri
    from stargate.errors import ConfigError
    from stargate.remote.storage import StorageError, open_storage

    if config.records.uri is None:
        return
    if config.records.models and config.trust_remote_code:
        raise ConfigError(
            "records.models: a model with Python code of its own (trust_remote_code) does not land "
            "on shared storage, since no code is read from there; set records.models=false"
        )
    try:
        open_storage(parse_uri(config.records.uri)).check_writable()
    except StorageError as error:
        raise StorageError(f"records.uri can't be used, nothing was started: {error}") from None


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


@contextmanager
def landing(
    config: "RunConfig",
    root: Path,
    progress: "Progress",
    *,
    take_over: bool = False,
    beside: bool = False,
) -> Iterator[None]:
    """The records in `root` land on shared storage meanwhile; at the end, all are there.

    Does nothing if the config names none. `beside` allows that another process of this machine
    works on the folder: it lands what is made here, too. Raises StorageError, naming what has not
    landed; an error of what goes on inside is more important, and that is then said.
    """
    from stargate.config.uri import parse_uri
    from stargate.remote.fetch import note_working
    from stargate.remote.lease import Lease, LeaseHeld
    from stargate.remote.manifest import new_identity, read_identity
    from stargate.remote.storage import StorageError, open_storage
    from stargate.remote.sync import INTERRUPTED_SECONDS, RemoteSync

    identity = read_identity(root)
    if identity is None:
        if config.records.uri is None:
            yield
            return
        place = parse_uri(config.records.uri).child(root.resolve().name)
        identity = new_identity(str(place))
        identity.write(root)
    settings = config.records
    storage = open_storage(parse_uri(identity.uri))
    if beside and Lease(storage, identity.owner).is_shared():
        progress.say(f"records land on {storage} by the process that works on {root}")
        yield
        return
    note_working(root)
    work = RemoteSync(
        storage,
        root,
        identity,
        progress.say,
        models=settings.models,
        interval_s=settings.interval_s,
        deadline_s=settings.deadline_s,
    )
    progress.say(f"records land on {storage}")
    work.begin(take_over=take_over)
    try:
        yield
    except BaseException:
        try:
            work.finish(min(settings.deadline_s, INTERRUPTED_SECONDS))
        except LeaseHeld as error:
            raise error from None  # it is why the work was interrupted
        except StorageError as error:
            progress.say(f"shared storage: {error}")
        raise
    work.finish()
