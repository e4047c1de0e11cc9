"""Fakes for unit tests: a byte tokenizer with a small chat template, scripted parts of the loop.

The tokenizer writes `<u>`, `<a>`, `<s>` and `<e>` for user, assistant, system and end of turn;
every other character is its code point. So expected ids can be written down literally.
"""

from collections.abc import Callable, Sequence
from typing import Self

from stargate.text.chat import ChatFormat
from stargate.types import (
    Answer,
    GenerateRequest,
    Generation,
    Pair,
    Persona,
    ScoreRequest,
    ScoreResult,
    StopReason,
    Task,
    Turn,
)

USER, ASSISTANT, SYSTEM, END = 1, 2, 3, 4
_SPECIAL = {"<u>": USER, "<a>": ASSISTANT, "<s>": SYSTEM, "<e>": END}
_ROLE = {"user": "<u>", "assistant": "<a>", "system": "<s>"}


class ByteTokenizer:
    """One id per character, four special tokens. `system_role` False refuses system messages."""

    control_ids = frozenset(_SPECIAL.values())
    control_texts = tuple(_SPECIAL)
    chat_template = ""
    normalizes = False

    def __init__(self, system_role: bool = True) -> None:
        self._system_role = system_role

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        text = ""
        for message in messages:
            if message["role"] == "system" and not self._system_role:
                raise ValueError("System role not supported")
            text += f"{_ROLE[message['role']]}{message['content']}<e>\n"
        return text + ("<a>" if add_generation_prompt else "")

    def not_thinking(self) -> Self:
        return self

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(
        self, text: str, goes_on: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets, position = [], [], 0
        while position < len(text):
            size = 3 if text[position : position + 3] in _SPECIAL else 1
            piece = text[position : position + size]
            ids.append(_SPECIAL.get(piece, ord(piece[0])))
            offsets.append((position, position + size))
            position += size
        return ids, offsets

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return "".join(chr(i) for i in ids if i not in _SPECIAL.values())


def byte_chat(system_role: bool = True) -> ChatFormat:
    return ChatFormat(ByteTokenizer(system_role), "bytes")


def text_ids(text: str, end: bool = True) -> tuple[int, ...]:
    """What a model would have sampled for a text: its characters and the end token."""
    return (*map(ord, text), *([END] if end else []))


def make_pair(
    task: str = "t", persona: str = "p", gold: str | None = "gold", **fields: object
) -> Pair:
    facts = fields.get("facts", ("I like tea.", "I own a dog."))
    assert isinstance(facts, tuple)
    return Pair(
        Task(task, f"{task}?", "A"),
        Persona(persona, persona.title(), f"About {persona}.", "A", facts),
        gold,
    )


def make_turn(question: str = "q?", answer: str = "a", **fields: object) -> Turn:
    return Turn(
        question=question,
        question_ids=text_ids(question),
        question_stop=StopReason.STOP,
        answer=answer,
        answer_ids=text_ids(answer),
        answer_stop=StopReason.STOP,
        **fields,  # type: ignore[arg-type]
    )


class ScriptedGenerate:
    """Generates what `script` says for each request; keeps the requests."""

    def __init__(
        self, script: Callable[[GenerateRequest], str], version: int = 0, end: bool = True
    ) -> None:
        self.requests: list[GenerateRequest] = []
        self.version = version
        self._script = script
        self._end = end

    async def __call__(self, request: GenerateRequest) -> Generation:
        self.requests.append(request)
        text = self._script(request)
        return Generation(
            text=text,
            token_ids=text_ids(text, self._end),
            stop=StopReason.STOP if self._end else StopReason.LENGTH,
            policy_version=self.version,
            num_prompt_tokens=len(request.prompt_ids),
            prompt_logprobs=self._read(request),
        )

    def _read(self, request: GenerateRequest) -> tuple[float, ...] | None:
        num = request.sampling.num_prompt_logprobs
        return (-0.5,) * num if num else None


class FixedRoleplay:
    """Always gives the same answer."""

    async def __call__(
        self, pair: Pair, turns: Sequence[Turn], question: str, *, session: str, seed: int
    ) -> Answer:
        return Answer("yes", (), StopReason.FIXED, (len(turns),))


class ScriptedScore:
    """Scores every gold token by `logprob(request)`."""

    def __init__(self, logprob: Callable[[ScoreRequest], float]) -> None:
        self.requests: list[ScoreRequest] = []
        self._logprob = logprob

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.requests += requests
        return [
            ScoreResult(
                request.key,
                tuple(tuple(self._logprob(request) for _ in gold) for gold in request.golds),
            )
            for request in requests
        ]
