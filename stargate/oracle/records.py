"""What is asked of an Oracle, and what comes back.

    ChatRequest -> [cache | server | local engine] -> Reply or NoReply -> ChatResult

A Reply is what a model said, as it said it; its AnswerStatus is judged from it (answers.py). A
NoReply is why there is none. Only a Reply is kept: after a NoReply a later run asks again.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from stargate.errors import DataError, RecordDropped
from stargate.text.chat import Message, Role


class AnswerStatus(StrEnum):
    """What became of one request. Only OK may become a gold, a persona or a verdict."""

    OK = "ok"
    REFUSED = "refused"  # the model declined, by the API's `refusal` field or in its words
    FILTERED = "filtered"  # a content filter stopped the prompt or the answer
    CUT_OFF = "cut_off"  # max_tokens was reached: the text is a beginning
    EMPTY = "empty"  # the model ended its turn without a word
    INVALID = "invalid"  # JSON was asked for and the text is not JSON
    MALFORMED = "malformed"  # it can't be read, or whether it is whole
    TOO_LONG = "too_long"  # the prompt does not fit the model's context
    FAILED = "failed"  # no usable answer within the attempts and the deadline


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A JSON schema that the answer must follow. `text` is the schema's canonical JSON, so that it
    hashes.
    """

    name: str
    text: str

    @classmethod
    def of(cls, name: str, schema: Mapping[str, Any]) -> "JsonSchema":
        return cls(name, json.dumps(schema, sort_keys=True, separators=(",", ":")))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion to ask for. None leaves a parameter out, so the server's default holds.

    `max_tokens` is always given: without it neither the cost nor the time of a call is bounded.
    `purpose` ("gold") and `record` ("t1:p1") name the request in messages; they are not part of its
    cache key.
    """

    messages: tuple[Message, ...]
    model: str
    max_tokens: int
    temperature: float | None = 0.0
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: JsonSchema | None = None
    purpose: str = "request"
    record: str = ""

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataError(f"{self.where}: messages must not be empty, got none")
        if any(message.token_ids is not None for message in self.messages):
            # Sampled ids would change what a local engine reads, and are not part of the cache key.
            raise DataError(f"{self.where}: messages must be plain text, got token ids")
        if not self.model:
            raise DataError(f"{self.where}: model must be named, got ''")
        if self.max_tokens < 1:
            raise DataError(f"{self.where}: max_tokens must be >= 1, got {self.max_tokens}")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise DataError(f"{self.where}: temperature must be >= 0, got {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise DataError(f"{self.where}: top_p must be in (0, 1], got {self.top_p}")

    @property
    def where(self) -> str:
        """How messages name this request: "gold t1:p1"."""
        return f"{self.purpose} {self.record}".rstrip()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `estimated` where the server reported none."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said. `finish_reason` is the server's word in lower case (answers.FINISH_REASONS
    knows what it means), or why nothing can be read; `model` is who says to have said it.
    """

    text: str
    refusal: str | None
    finish_reason: str
    usage: Usage
    model: str


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why there is no reply: FAILED, TOO_LONG or FILTERED, with one line of detail."""

    status: AnswerStatus
    detail: str


@dataclass(frozen=True, slots=True)
class ChatResult:
    """The outcome of one request.

    `text` is what the model said after its reasoning, whatever the status: use it only where `ok`,
    or take it with `require`. `cost` is what this call added to the bill, in the price table's
    currency: 0 for a cached answer, None where no price is known. `usage` is None where there is no
    reply.
    """

    status: AnswerStatus
    text: str
    usage: Usage | None
    cost: float | None
    cached: bool
    key: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status is AnswerStatus.OK

    def require(self, where: str) -> str:
        """The text of an OK answer. Raises RecordDropped with the status as its reason."""
        if not self.ok:
            raise RecordDropped(f"oracle_{self.status.value}", where, self.detail or "no detail")
        return self.text


class Complete(Protocol):
    """All that a caller needs to know of an Oracle, whether remote or the run's own engine."""

    async def complete(self, request: ChatRequest) -> ChatResult: ...


def chat(*turns: tuple[Role, str]) -> tuple[Message, ...]:
    """Messages from (role, text) pairs: chat(("system", "Be brief."), ("user", "Hi"))."""
    return tuple(Message(role, text) for role, text in turns)
