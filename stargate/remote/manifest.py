"""Which files of a run are on shared storage, with the checksum of each, and whose they are.


    URI/NAME/t0/scores.parquet                   the files, under the names that they have in RUN
    URI/NAME/_landing/manifest-00000007.json     what they are; the newest whole one counts
    URI/NAME/_landing/lease.json                 who writes (lease.py)

A manifest says for each name what may be there: one state in peace; more while the name is being
written or deleted, for it is written BEFORE anything is changed. So whoever reads after a crash
knows of each file whether it is one of the states that were meant, or damaged. Manifests are
numbered and never overwritten, and carry their own checksum; a torn one counts as not written, and
the one before it is still there.

Names are checked on reading: a manifest that someone else made can't name files outside of a run.

A run directory is copied by `fetch`, and a machine that was thought lost comes back with its own.
So each has a random name, its `Identity`, and knows which manifest it came from: one that is not
what the storage goes on from is refused, where it would overwrite what another has done.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, TypeAdapter

from stargate.errors import DataError, one_line
from stargate.records.files import read_json, write_text
from stargate.remote.scan import LANDING_FILE, is_model_file, is_record
from stargate.remote.storage import Storage, StorageError

FOLDER = "_landing"
_FORMAT = 1
_FILE = re.compile(r"manifest-(\d{8})\.json")
_MAX_BYTES = 1 << 28


def _record_name(name: str) -> str:
    if not (is_record(name) or is_model_file(name)):
        raise ValueError(f"{name[:100]!r} is no name of a record")
    return name


class Content(NamedTuple):
    """What a file holds."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, strict=True)]


# All that may be under a name. None: nothing.
States = tuple[Content | None, ...]
_Owner = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
_Name = Annotated[str, AfterValidator(_record_name)]


@dataclass(frozen=True)
class Manifest:
    """`is_complete`: it was written when everything that the run directory had was there."""

    number: int
    owner: _Owner
    host: Annotated[str, Field(max_length=200)]
    is_complete: bool
    files: Mapping[_Name, Annotated[States, Field(min_length=1)]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        values = {
            "format": _FORMAT,
            "number": self.number,
            "owner": self.owner,
            "host": self.host,
            "complete": self.is_complete,
            "files": dict(sorted(self.files.items())),
        }
        text = json.dumps(values, separators=(",", ":"))
        return json.dumps({"sha256": _digest(text), "manifest": text}).encode()


def read_manifest(content: bytes, where: str) -> Manifest:
    """Raises DataError for one that is torn, or that names what a run does not have."""
    try:
        outer = json.loads(content)
        text = outer["manifest"]
        if _digest(text) != outer["sha256"]:
            raise ValueError("its checksum does not match")
        values = json.loads(text)
        if (number := values.pop("format")) != _FORMAT:
            raise ValueError(f"format {number!r} is not known here")
        values["is_complete"] = values.pop("complete")
        return TypeAdapter(Manifest).validate_python(values)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = one_line(error)
        raise DataError(f"{where}: not a manifest that a run writes: {problem}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_name(number: int) -> str:
    return f"{FOLDER}/manifest-{number:08d}.json"


def manifest_numbers(storage: Storage) -> list[int]:
    """Of the manifests that are there, newest first."""
    matches = map(_FILE.fullmatch, storage.names(FOLDER))
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def newest_manifest(storage: Storage, say: Callable[[str], None] | None = None) -> Manifest | None:
    """The newest manifest that is whole; None if there is none. Raises StorageError, DataError.

    `say` hears of those that are not.
    """
    for _ in range(3):  # a writer that goes on meanwhile deletes old ones
        problem: DataError | None = None
        for number in manifest_numbers(storage):
            content = storage.read(manifest_name(number), _MAX_BYTES)
            if content is None:
                break
            try:
                return read_manifest(content, f"{storage}/{manifest_name(number)}")
            except DataError as error:
                problem = problem or error
                if say is not None:
                    say(f"damaged: {error}; the one before it is used")
        else:
            if problem is not None:
                raise problem
            return None
    raise StorageError(f"{storage}: its manifests vanish while they are read; try again")


@dataclass(frozen=True, slots=True)
class Identity:
    """`owner` names this run directory; `seen` is (owner, number) of the manifest it came from."""

    uri: str
    owner: _Owner
    seen: tuple[str, int] | None

    def write(self, root: Path) -> None:
        write_text(root / LANDING_FILE, json.dumps(asdict(self)) + "\n")


def read_identity(root: Path) -> Identity | None:
    """What LANDING_FILE says; None without one. Raises DataError."""
    values = read_json(root / LANDING_FILE)
    try:
        return None if values is None else TypeAdapter(Identity).validate_python(values)
    except ValueError as error:
        raise DataError(
            f"{root / LANDING_FILE}: not what a run writes: {one_line(error)}"
        ) from error


def new_identity(uri: str, seen: tuple[str, int] | None = None) -> Identity:
    return Identity(uri, uuid.uuid4().hex, seen)
