"""Records as bytes, as small and as fast as Python alone makes them.

    records --pickle, with plain tuples for the frequent ones--> bytes --Ray--> records

Ray pickles an argument with cloudpickle, which asks Python code about every object in it, and
frozen dataclasses with slots are pickled by Python code as well: together some 10 us per record,
more than all of its token ids take. Bytes travel through Ray as they are.
"""

import io
import pickle
from collections.abc import Callable
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

_Reduced = tuple[Callable[..., Any], tuple[Any, ...]]

_STOPS = {reason: reason.value for reason in StopReason}


def _generate_request(record: GenerateRequest) -> _Reduced:
    s = record.sampling
    sampling = (s.temperature, s.top_p, s.max_new_tokens, s.seed, s.logprobs)
    return _read_request, (record.request_id, record.session, record.prompt_ids, *sampling)


def _read_request(
    request_id: str, session: str, prompt_ids: tuple[int, ...], *sampling: Any
) -> GenerateRequest:
    return GenerateRequest(request_id, session, prompt_ids, Sampling(*sampling))


def _generation(record: Generation) -> _Reduced:
    return _read_generation, (
        record.text,
        record.token_ids,
        _STOPS[record.stop],
        record.policy_version,
        record.num_prompt_tokens,
        record.num_cached_tokens,
        record.logprobs,
    )


def _read_generation(text: str, token_ids: tuple[int, ...], stop: str, *others: Any) -> Generation:
    return Generation(text, token_ids, StopReason(stop), *others)


def _turn(record: Turn) -> _Reduced:
    return _read_turn, (
        record.question,
        record.question_ids,
        _STOPS[record.question_stop],
        record.answer,
        record.answer_ids,
        _STOPS[record.answer_stop],
        record.elicited,
        record.question_logprobs,
    )


def _read_turn(
    question: str,
    question_ids: tuple[int, ...],
    question_stop: str,
    answer: str,
    answer_ids: tuple[int, ...],
    answer_stop: str,
    *others: Any,
) -> Turn:
    return Turn(
        question,
        question_ids,
        StopReason(question_stop),
        answer,
        answer_ids,
        StopReason(answer_stop),
        *others,
    )


def _fields(record: Any) -> _Reduced:
    return type(record), tuple([getattr(record, name) for name in record.__match_args__])


class _Packer(pickle.Pickler):
    dispatch_table = {  # noqa: RUF012 (what pickle looks for)
        GenerateRequest: _generate_request,
        Generation: _generation,
        Turn: _turn,
        **dict.fromkeys((Dialogue, DialoguePlan, Pair, Persona, Task), _fields),
        **dict.fromkeys((ScoreRequest, ScoreResult), _fields),
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
