"""From messages to token ids, through a model's own chat template.

    messages -> template text with holes for sampled ids -> ids of the text between -> one sequence

A dialogue is never tokenised twice: what a model sampled stays as ids. The template is rendered
with a placeholder for each such message; the text between the placeholders is tokenised, and the
sampled ids are put in. So rollout, scoring and training see the same ids, and the loss mask is
known without searching in text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

from stargate.errors import ModelError, RecordDropped
from stargate.types import StopReason

Role = Literal["system", "user", "assistant"]

# Private-use characters: no tokenizer's template and no honest text contains them.
_HOLE_OPEN, _HOLE_CLOSE = "\ue000", "\ue001"
_HOLE = re.compile(f"{_HOLE_OPEN}(\\d+){_HOLE_CLOSE}")
# Texts whose ids are remembered, a few kB each. What stands before the first sampled message, most
# of a prompt, is the same in every turn of a dialogue and in all dialogues of a pair.
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message.

    `token_ids` (with `stop`) are set on what a model sampled; `text` is then for reading only.
    `learned`: whether sampled ids have loss.
    """

    role: Role
    text: str
    token_ids: tuple[int, ...] | None = None
    stop: StopReason = StopReason.STOP
    learned: bool = True


class ChatTokenizer(Protocol):
    """The part of a tokenizer that is needed here; HfChatTokenizer adapts a Hugging Face one."""

    special_texts: tuple[str, ...]

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """The chat template's text.

        May raise any exception for messages that the template refuses.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of rendered text: special tokens are parsed, none are added."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and each id's (start, end) characters in the text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        ...


@dataclass(frozen=True, slots=True)
class MaskedIds:
    """Ids and loss mask, both (T,); mask 1 where the token was sampled by the policy or is the
    target.
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]


class ChatFormat:
    """Renders messages for one model.

    Raises ModelError if the model has no usable chat template.
    """

    def __init__(self, tokenizer: ChatTokenizer, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        texts = sorted((re.escape(t) for t in tokenizer.special_texts if t), key=len, reverse=True)
        self._special = re.compile("|".join(texts)) if texts else None
        self._has_system_role = self._probe_system_role()
        self._encode = lru_cache(_MAX_REMEMBERED)(lambda text: tuple(tokenizer.encode(text)))
        self._encode_with_offsets = lru_cache(_MAX_REMEMBERED)(self._encode_with_offsets_now)
        self._is_border = lru_cache(None)(self._probe_border)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids (T,) of the conversation, ending where the assistant's next turn begins."""
        return self._assemble(messages, add_generation_prompt=True).ids

    def masked_ids(self, messages: Sequence[Message]) -> MaskedIds:
        """Ids and loss mask of a conversation that ends with the assistant.

        The mask is 1 on every sampled id; the end token is among them only if the model sampled it.
        What the template writes after the last end token (a newline, say) is left out.
        """
        if not messages or messages[-1].role != "assistant":
            raise ValueError("masked_ids needs a conversation that ends with the assistant")
        return self._assemble(messages, add_generation_prompt=False)

    def with_target(self, messages: Sequence[Message], target: str) -> MaskedIds:
        """Like masked_ids for a text that no model sampled (a gold):

        the target and its end token have mask 1.
        """
        before, target_ids = self._split(messages, target)
        tail = target_ids + self._end_ids(messages, target)
        return MaskedIds(before.ids + tail, before.mask + (1,) * len(tail))

    def continuation(
        self, messages: Sequence[Message], target: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Splits conversation + target into (context ids (T,), target ids (G,)).

        The target is tokenised where it stands, after the template's header, because some
        tokenizers merge across the border; a token that covers the first target character counts to
        the target.
        """
        before, target_ids = self._split(messages, target)
        return before.ids, target_ids

    def count(self, text: str) -> int:
        """How many tokens a plain text has."""
        return len(self._tokenizer.encode(self._plain(text)))

    def _assemble(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
    ) -> MaskedIds:
        segments = self._segments(messages, add_generation_prompt)
        encoded = [self._encode(text) for text in segments]
        return self._join(messages, encoded, add_generation_prompt)

    def _join(
        self,
        messages: Sequence[Message],
        encoded: Sequence[Sequence[int]],
        add_generation_prompt: bool,
    ) -> MaskedIds:
        """The template's ids with the sampled ones between them."""
        sampled = [m for m in messages if m.token_ids is not None]
        ids = list(encoded[0])
        mask = [0] * len(ids)
        for message, following in zip(sampled, encoded[1:], strict=True):
            assert message.token_ids is not None
            ended = message.stop is StopReason.STOP and bool(message.token_ids)
            body = message.token_ids[:-1] if ended else message.token_ids
            ids += body
            mask += [int(message.learned)] * len(body)
            ids += following
            # The template writes the end token; it has loss only if the model itself chose to end
            # here.
            own_end = ended and bool(following) and following[0] == message.token_ids[-1]
            mask += (
                [int(own_end and message.learned)] + [0] * (len(following) - 1) if following else []
            )
        if not add_generation_prompt and sampled:
            keep = _last_one(mask) + 1
            del ids[keep:], mask[keep:]
        return MaskedIds(tuple(ids), tuple(mask))

    def _segments(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[str]:
        """Template text around the sampled messages: one more segment than there are of those."""
        rendered, holes = [], 0
        for message in self._without_system_role(messages):
            if message.token_ids is None:
                rendered.append({"role": message.role, "content": self._plain(message.text)})
            else:
                content = f"{_HOLE_OPEN}{holes}{_HOLE_CLOSE}"
                rendered.append({"role": message.role, "content": content})
                holes += 1
        try:
            text = self._tokenizer.render(rendered, add_generation_prompt)
        except Exception as error:  # a template is foreign code and may raise anything
            problem = " ".join(str(error).split())
            raise ModelError(f"{self._name}: its chat template failed: {problem}") from error
        parts = _HOLE.split(text)
        segments, order = parts[0::2], [int(index) for index in parts[1::2]]
        if order != list(range(holes)):
            raise ModelError(
                f"{self._name}: its chat template lost or reordered assistant turns "
                f"(expected {holes} in order, got {order})"
            )
        return segments

    def _plain(self, text: str) -> str:
        """Text that can't be mistaken for template structure:

        special tokens spelled out in it are broken up.
        """
        if _HOLE_OPEN in text or _HOLE_CLOSE in text:
            raise RecordDropped("reserved_character", text[:40], "contains U+E000 or U+E001")
        if self._special is None:
            return text
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _without_system_role(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._has_system_role or not messages or messages[0].role != "system":
            return messages
        if len(messages) < 2 or messages[1].role != "user":
            return [Message("user", messages[0].text), *messages[1:]]
        merged = Message("user", f"{messages[0].text}\n\n{messages[1].text}")
        return [merged, *messages[2:]]

    def _split(self, messages: Sequence[Message], target: str) -> tuple[MaskedIds, tuple[int, ...]]:
        *segments, header = self._segments(messages, add_generation_prompt=True)
        left, right = self._cut_at_border(header)
        ids, offsets = self._encode_with_offsets(right + self._plain(target.strip()))
        split = next((i for i, (_, end) in enumerate(offsets) if end > len(right)), len(ids))
        last = (*(self._encode(left) if left else ()), *ids[:split])
        encoded = [*(self._encode(segment) for segment in segments), last]
        return self._join(messages, encoded, add_generation_prompt=True), ids[split:]

    def _cut_at_border(self, header: str) -> tuple[str, str]:
        """A header up to its last special token, and what follows: no token spans that border.

        With a target after it, which is most of the text, the second part is the same for all
        dialogues of a pair, so it is encoded once.
        """
        found = list(self._special.finditer(header)) if self._special else []
        if not found or not self._is_border(found[-1][0]):
            return "", header
        border = found[-1].end()
        return header[:border], header[border:]

    def _end_ids(self, messages: Sequence[Message], target: str) -> tuple[int, ...]:
        """The token with which the template ends an assistant turn."""
        marker = Message("assistant", target, token_ids=(), stop=StopReason.LENGTH)
        after = self._segments([*messages, marker], add_generation_prompt=False)[-1]
        return tuple(self._tokenizer.encode(after)[:1])

    def _encode_with_offsets_now(
        self, text: str
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        ids, offsets = self._tokenizer.encode_with_offsets(text)
        return tuple(ids), tuple(offsets)

    def _probe_border(self, special: str) -> bool:
        """Whether text after a special token is encoded as if it stood alone. Not so where the
        tokenizer marks the beginning of a text, or where the token swallows the space after it.
        """
        encode = self._tokenizer.encode
        return all(
            encode(f"one{special}{after}") == encode(f"one{special}") + encode(after)
            for after in ("two words", " two", "\ntwo", "\n\ntwo", "  \n two")
        )

    def _probe_system_role(self) -> bool:
        probe = "probe of the system role"
        user = {"role": "user", "content": "hello"}
        try:
            self._tokenizer.render([user], True)
        except Exception as error:  # foreign code, as above
            problem = " ".join(str(error).split())
            raise ModelError(f"{self._name}: no usable chat template: {problem}") from error
        try:
            text = self._tokenizer.render([{"role": "system", "content": probe}, user], True)
        except Exception:
            return False
        return probe in text


class HfChatTokenizer:
    """Adapts a Hugging Face fast tokenizer to ChatTokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special}
        self.special_texts = tuple(sorted(special | set(tokenizer.all_special_tokens)))
        # Without the wrapper, which takes several times as long as the encoding of a short text.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._backend.encode(text, add_special_tokens=False)
        return list(encoded.ids), list(encoded.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def load_chat_format(model_dir: str, trust_remote_code: bool = False) -> ChatFormat:
    """The chat format of a model folder.

    Raises ModelError if its tokenizer or template can't be used.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())
        raise ModelError(f"{model_dir}: can't load its tokenizer: {problem}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{model_dir}: needs a fast tokenizer (tokenizer.json), got a slow one")
    return ChatFormat(HfChatTokenizer(tokenizer), model_dir)


def _last_one(mask: Sequence[int]) -> int:
    """Index of the last 1; the end of the sequence if there is none."""
    return next((i for i in range(len(mask) - 1, -1, -1) if mask[i]), len(mask) - 1)
