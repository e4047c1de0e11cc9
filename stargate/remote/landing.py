"""A run's records land on shared storage while a command works on them: what commands call.

check_records(config) before anything starts, then landing(...) around the work
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stargate.config.run import RunConfig
from stargate.config.uri import parse_uri
from stargate.errors import ConfigError
from stargate.monitoring.progress import Progress
from stargate.remote.fetch import note_working
from stargate.remote.lease import Lease, LeaseHeld
from stargate.remote.manifest import new_identity, read_identity
from stargate.remote.storage import StorageError, open_storage
from stargate.remote.sync import INTERRUPTED_SECONDS, RemoteSync


def check_records(config: RunConfig) -> None:
    """Raises StargateError if `records.uri` can't be written, before anything starts."""
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
def landing(
    config: RunConfig,
    root: Path,
    progress: Progress,
    *,
    take_over: bool = False,
    beside: bool = False,
) -> Iterator[None]:
    """The records in `root` land on shared storage meanwhile; at the end, all are there.

    Does nothing if the config names none. `beside` allows that another process of this machine
    works on the folder: it lands what is made here, too. Raises StorageError, naming what has not
    landed; an error of what goes on inside is more important, and that is then said.
    """
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
