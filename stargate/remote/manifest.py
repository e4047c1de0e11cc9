"""Which files of a run are on shared storage, with the checksum of each.

    URI/NAME/t0/scores.parquet                   the files, under the names that they have in RUN
    URI/NAME/_landing/manifest-00000007.json     what they are; the newest whole one counts
    URI/NAME/_landing/lease.json                 who writes (lease.py)

A manifest says for each name what may be there: one state in peace; more while the name is being
written or deleted, for it is written BEFORE anything is changed. So whoever reads after a crash
knows of each file whether it is one of the states that were meant, or damaged. Manifests are
numbered and never overwritten, and carry their own checksum; a torn one counts as not written, and
the one before it is still there.

Names are checked on reading: a manifest that someone else made can't name files outside of a run.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stargate.errors import DataError, one_line
from stargate.records.schemas import SCHEMAS

FOLDER = "_landing"
# In the run directory, of this machine alone: where its records land, and that it was fetched.
LANDING_FILE = "landing.json"
FETCHED_FILE = "fetched.json"
_FORMAT = 1
_FILE = re.compile(r"manifest-(\d{8})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWNER = re.compile(r"[0-9a-f]{32}")
MAX_BYTES = 1 << 28

_TABLE = f"({'|'.join(SCHEMAS)})"
_ASIDE = r"(\.damaged-\d{1,6})?"
_IN_SCOPE = (
    rf"(t|eval-m)\d{{1,6}}/({_TABLE}(/part-\d{{6,9}})?\.parquet|[a-z_]{{1,40}}\.json){_ASIDE}"
)
_TOP = rf"(config\.yaml|metrics\.jsonl|[a-z_]{{1,40}}(-\d{{1,6}})?\.json){_ASIDE}"
_EVALUATION = r"(evaluations/[A-Za-z0-9][A-Za-z0-9._-]{0,99}/)?"
_RECORD = re.compile(rf"{_EVALUATION}({_TOP}|{_IN_SCOPE})")
# No .py and no pickles: nothing that comes from shared storage may be code.
_MODEL_FILE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(safetensors|json|txt|jinja|model|tiktoken)"
_MODEL = re.compile(rf"models/m\d{{1,6}}/(additional_chat_templates/)?{_MODEL_FILE}")


def is_record(name: str) -> bool:
    """Whether a name within a run directory is one of records; all others stay where they are."""
    return _RECORD.fullmatch(name) is not None and name not in (LANDING_FILE, FETCHED_FILE)


def is_model_file(name: str) -> bool:
    """Whether it is one of a trained model."""
    return _MODEL.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds."""

    sha256: str
    size: int


# All that may be under a name. None: nothing.
States = tuple[Content | None, ...]


@dataclass(frozen=True)
class Manifest:
    """`is_complete`: it was written when everything that the run directory had was there."""

    number: int
    owner: str
    host: str
    is_complete: bool
    files: Mapping[str, States] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        values = {
            "format": _FORMAT,
            "number": self.number,
            "owner": self.owner,
            "host": self.host,
            "complete": self.is_complete,
            "files": {
                name: [None if state is None else [state.sha256, state.size] for state in states]
                for name, states in sorted(self.files.items())
            },
        }
        text = json.dumps(values, separators=(",", ":"))
        return json.dumps({"sha256": _digest(text), "manifest": text}).encode()


def manifest_name(number: int) -> str:
    return f"{FOLDER}/manifest-{number:08d}.json"


def manifest_number(file_name: str) -> int | None:
    """The number of a file of FOLDER; None for other files."""
    match = _FILE.fullmatch(file_name)
    return None if match is None else int(match[1])


def read_manifest(content: bytes, where: str) -> Manifest:
    """Raises DataError for one that is torn, or that names what a run does not have."""
    try:
        outer = json.loads(content)
        text = outer["manifest"]
        if _digest(text) != outer["sha256"]:
            raise ValueError("its checksum does not match")
        values = json.loads(text)
        return _manifest(values)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = one_line(error)
        raise DataError(f"{where}: not a manifest that a run writes: {problem}") from error


def _manifest(values: Mapping[str, Any]) -> Manifest:
    if values["format"] != _FORMAT:
        raise ValueError(f"format {values['format']!r} is not known here")
    if not _OWNER.fullmatch(values["owner"]):
        raise ValueError("odd owner")
    files = {}
    for name, states in values["files"].items():
        if not (is_record(name) or is_model_file(name)):
            raise ValueError(f"{name[:100]!r} is no name of a record")
        if not states:
            raise ValueError(f"{name!r} has no state")
        files[name] = tuple(None if state is None else _content(*state) for state in states)
    return Manifest(
        number=int(values["number"]),
        owner=values["owner"],
        host=str(values["host"])[:200],
        is_complete=bool(values["complete"]),
        files=files,
    )


def _content(sha256: str, size: int) -> Content:
    if not _SHA256.fullmatch(sha256) or type(size) is not int or size < 0:
        raise ValueError("odd checksum or size")
    return Content(sha256, size)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
