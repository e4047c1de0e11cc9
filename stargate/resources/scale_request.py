"""A wish for more or fewer engines, on its way from `stargate scale` to the run that goes on.

    command: RUN/scale.json, written whole -> the run takes it away, within a second or so
             RUN/scale-answer.json       <-- "working", then "done" or "refused" with a reason

Whoever may write into the run directory may ask. Both files are JSON of a fixed shape: anything
else is refused with one line, and never does more than that.
"""

import json
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from stargate.config.component import Component
from stargate.config.files import describe_problem
from stargate.errors import ConfigError, DataError
from stargate.records.files import write_text
from stargate.resources.cluster import ENGINES

REQUEST_FILE = "scale.json"
ANSWER_FILE = "scale-answer.json"
# More engines than that for one role is a typing error.
MAX_ENGINES = 1024
# Bytes of a file; ours have 200.
_MAX_BYTES = 16_384
# Characters of an answer. What Ray says can be long.
_MAX_MESSAGE = 2000

_FileT = TypeVar("_FileT", bound=Component)
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Role = Annotated[str, Field(pattern=rf"^({'|'.join(ENGINES)})$")]
_Count = Annotated[int, Field(ge=1, le=MAX_ENGINES, strict=True)]


class ScaleRequest(Component):
    """How many engines roles shall have. A role that is not named stays as it is."""

    id: _Id
    engines: Annotated[dict[_Role, _Count], Field(min_length=1)]


class ScaleAnswer(Component):
    """What the run makes of a request."""

    id: _Id
    state: Literal["working", "done", "refused"]
    message: Annotated[str, Field(max_length=_MAX_MESSAGE)]


def parse_engines(words: Sequence[str]) -> dict[str, int]:
    """ "questioner=2" as {"questioner": 2}. Raises ConfigError."""
    found: dict[str, int] = {}
    for word in words:
        role, _, count = word.partition("=")
        if role not in ENGINES:
            raise ConfigError(f"{word!r}: expected ROLE=COUNT with a role of {', '.join(ENGINES)}")
        if role in found:
            raise ConfigError(f"{role} is named twice")
        if not re.fullmatch(r"[0-9]{1,4}", count) or not 1 <= int(count) <= MAX_ENGINES:
            raise ConfigError(f"{role}: expected a count of 1 to {MAX_ENGINES}, got {count!r}")
        found[role] = int(count)
    if not found:
        raise ConfigError("name a role and how many engines it shall have, e.g. questioner=2")
    return found


def shown(engines: Mapping[str, int]) -> str:
    """Counts as on the command line."""
    return " ".join(f"{role}={count}" for role, count in engines.items())


def send_request(root: Path, engines: Mapping[str, int]) -> ScaleRequest:
    """Leaves a request for the run in `root`. Raises DataError if another one waits there."""
    file = root / REQUEST_FILE
    if os.path.lexists(file):
        raise DataError(f"{file}: another request waits to be taken; try again in a moment")
    request = ScaleRequest(id=secrets.token_hex(16), engines=dict(engines))
    _write(file, request)
    return request


def withdraw_request(root: Path) -> bool:
    """Takes a request back; False if the run was faster."""
    try:
        (root / REQUEST_FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def take_request(root: Path) -> ScaleRequest | None:
    """The request that waits, which is taken away whatever it holds. Raises DataError."""
    file = root / REQUEST_FILE
    if not os.path.lexists(file):
        return None
    # First out of the way: what is withdrawn at this moment must not be done.
    taken = root / f".{REQUEST_FILE}.taken"
    try:
        file.rename(taken)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file}: can't be taken away: {error.strerror}") from error
    try:
        return _read(taken, ScaleRequest, file)
    finally:
        taken.unlink(missing_ok=True)


def write_answer(root: Path, request: ScaleRequest, state: str, message: str) -> None:
    """Tells who asked, cut to what a file may hold. Raises MachineError for a full disk."""
    line = " ".join(message.split())[:_MAX_MESSAGE]
    answer = ScaleAnswer.model_validate({"id": request.id, "state": state, "message": line})
    _write(root / ANSWER_FILE, answer)


def read_answer(root: Path, request: ScaleRequest) -> ScaleAnswer | None:
    """The run's answer to this request, if there is one yet. Raises DataError."""
    file = root / ANSWER_FILE
    if not os.path.lexists(file):
        return None
    found = _read(file, ScaleAnswer, file)
    return found if found.id == request.id else None


def _write(file: Path, record: Component) -> None:
    write_text(file, json.dumps(record.model_dump(mode="json")) + "\n")


def _read(path: Path, kind: type[_FileT], shown_as: Path) -> _FileT:
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_BYTES:
            raise DataError(f"{shown_as}: not a small file, as `stargate scale` writes it")
        values: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{shown_as}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown_as}: not valid JSON") from error
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{shown_as}: {describe_problem(error)}") from error
