"""Which run directory this is, of all that may hold the run at one address.

A run directory is copied by `fetch`, and a machine that was thought lost comes back with its own.
So each has a random name, and knows which manifest it came from: one that is not what the storage
goes on from is refused, where it would overwrite what another has done.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from stargate.errors import DataError
from stargate.records.files import read_json, write_text
from stargate.remote.manifest import LANDING_FILE


@dataclass(frozen=True, slots=True)
class Identity:
    """`owner` names this run directory; `seen` is (owner, number) of the manifest it came from."""

    uri: str
    owner: str
    seen: tuple[str, int] | None

    def write(self, root: Path) -> None:
        values = {"uri": self.uri, "owner": self.owner, "seen": self.seen}
        write_text(root / LANDING_FILE, json.dumps(values) + "\n")


def read_identity(root: Path) -> Identity | None:
    """What LANDING_FILE says; None without one. Raises DataError."""
    values = read_json(root / LANDING_FILE)
    if values is None:
        return None
    try:
        seen = values["seen"]
        return Identity(
            uri=str(values["uri"]),
            owner=uuid.UUID(values["owner"]).hex,
            seen=None if seen is None else (str(seen[0]), int(seen[1])),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{root / LANDING_FILE}: not what a run writes: {error!r}") from error


def new_identity(uri: str, seen: tuple[str, int] | None = None) -> Identity:
    return Identity(uri, uuid.uuid4().hex, seen)
