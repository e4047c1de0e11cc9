"""Records as bytes, as small and as fast as Python alone makes them.

    records --pickle, each as its class and its fields--> bytes --Ray--> records

Ray pickles an argument with cloudpickle, which asks Python code about every object in it, and
frozen dataclasses with slots are pickled by Python code as well: together some 10 us per record,
more than all of its token ids take. Bytes travel through Ray as they are.
"""

import io
import pickle
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from stargate.types import (
    Dialogue,
    DialoguePlan,
    GenerateRequest,
    Generation,
    Pair,
    Persona,
    Sampling,
    ScoreRequest,
    ScoreResult,
    StopReason,
    Task,
    Turn,
)

_FREQUENT: tuple[Any, ...] = (
    *(GenerateRequest, Sampling, Generation, Turn, ScoreRequest, ScoreResult),
    *(Dialogue, DialoguePlan, Pair, Persona, Task),
)


def _by_fields(record_class: Any) -> Callable[[Any], tuple[Any, ...]]:
    fields = attrgetter(*record_class.__match_args__)
    return lambda record: (record_class, fields(record))


class _Packer(pickle.Pickler):
    dispatch_table = {  # noqa: RUF012 (what pickle looks for)
        StopReason: lambda reason: (StopReason, (reason.value,)),
        **{record_class: _by_fields(record_class) for record_class in _FREQUENT},
    }


def pack(records: Any) -> bytes:
    """Records, in whatever lists and tuples, as bytes."""
    buffer = io.BytesIO()
    _Packer(buffer, protocol=5).dump(records)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    """What was packed."""
    return pickle.loads(data)


class Records(list[Any]):
    """A list of records that Ray need not look into; it arrives as a plain list."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return unpack, (pack(list(self)),)
