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
from itertools import chain
from typing import Any, Literal, Protocol

from stargate.errors import ModelError, RecordDropped, one_line
from stargate.types import StopReason

Role = Literal["system", "user", "assistant"]

# Texts between sampled messages whose ids are remembered, some kB each. What stands before the
# first one is the same in all turns of a dialogue, and in all dialogues of a pair.
_MAX_TEXTS = 4096
# Private-use characters: no template and no honest text contains them.
_HOLE_OPEN, _HOLE_CLOSE = "\ue000", "\ue001"
_HOLE = re.compile(f"{_HOLE_OPEN}(\\d+){_HOLE_CLOSE}")


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
        texts = sorted(map(re.escape, filter(None, tokenizer.special_texts)), key=len, reverse=True)
        self._special = re.compile("|".join(texts)) if texts else None
        self._has_system_role = self._probe_system_role()
        self._encode = lru_cache(_MAX_TEXTS)(lambda text: tuple(tokenizer.encode(text)))

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids (T,) of the conversation, ending where the assistant's next turn begins."""
        return self._join_ids(messages, self._encoded(messages, add_generation_prompt=True))

    def masked_ids(self, messages: Sequence[Message]) -> MaskedIds:
        """Ids and loss mask of a conversation that ends with the assistant.

        The mask is 1 on every sampled id; the end token is among them only if the model sampled it.
        What the template writes after the last end token (a newline, say) is left out.
        """
        if not messages or messages[-1].role != "assistant":
            raise ValueError("masked_ids needs a conversation that ends with the assistant")
        encoded = self._encoded(messages, add_generation_prompt=False)
        return self._join(messages, encoded, add_generation_prompt=False)

    def with_target(self, messages: Sequence[Message], target: str) -> MaskedIds:
        """Like masked_ids for a text that no model sampled (a gold):

        the target and its end token have mask 1.
        """
        encoded, target_ids = self._split(messages, target)
        before = self._join(messages, encoded, add_generation_prompt=True)
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
        encoded, target_ids = self._split(messages, target)
        return self._join_ids(messages, encoded), target_ids

    def count(self, text: str) -> int:
        """How many tokens a plain text has."""
        return len(self._tokenizer.encode(self._plain(text)))

    def _encoded(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> list[tuple[int, ...]]:
        """Ids of the segments."""
        return [*map(self._encode, self._segments(messages, add_generation_prompt))]

    def _join_ids(
        self, messages: Sequence[Message], encoded: Sequence[Sequence[int]]
    ) -> tuple[int, ...]:
        """The ids of `_join`, without their mask."""
        parts = [encoded[0]]
        number = 0
        for message in messages:
            if message.token_ids is not None:
                ended = message.stop is StopReason.STOP
                parts.append(message.token_ids[:-1] if ended else message.token_ids)
                number += 1
                parts.append(encoded[number])
        return tuple(chain.from_iterable(parts))

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
                content = self._plain(message.text)
            else:
                content = f"{_HOLE_OPEN}{holes}{_HOLE_CLOSE}"
                holes += 1
            rendered.append({"role": message.role, "content": content})
        try:
            text = self._tokenizer.render(rendered, add_generation_prompt)
        except Exception as error:  # a template is foreign code and may raise anything
            problem = one_line(error)
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

    def _split(
        self, messages: Sequence[Message], target: str
    ) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
        """Ids of the segments before a target, and the target's."""
        *segments, header = self._segments(messages, add_generation_prompt=True)
        header_ids, target_ids = self._encode_target(header, self._plain(target.strip()))
        return [*map(self._encode, segments), header_ids], target_ids

    def _end_ids(self, messages: Sequence[Message], target: str) -> tuple[int, ...]:
        """The token with which the template ends an assistant turn."""
        marker = Message("assistant", target, token_ids=(), stop=StopReason.LENGTH)
        after = self._segments([*messages, marker], add_generation_prompt=False)[-1]
        return tuple(self._tokenizer.encode(after)[:1])

    def _encode_target(self, before: str, target: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ids, offsets = self._tokenizer.encode_with_offsets(before + target)
        split = next((i for i, (_, end) in enumerate(offsets) if end > len(before)), len(ids))
        return tuple(ids[:split]), tuple(ids[split:])

    def _probe_system_role(self) -> bool:
        probe = "probe of the system role"
        user = {"role": "user", "content": "hello"}
        try:
            self._tokenizer.render([user], True)
        except Exception as error:  # foreign code, as above
            problem = one_line(error)
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
        problem = one_line(error)
        raise ModelError(f"{model_dir}: can't load its tokenizer: {problem}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{model_dir}: needs a fast tokenizer (tokenizer.json), got a slow one")
    return ChatFormat(HfChatTokenizer(tokenizer), model_dir)


def _last_one(mask: Sequence[int]) -> int:
    """Index of the last 1; the end of the sequence if there is none."""
    return next((i for i in range(len(mask) - 1, -1, -1) if mask[i]), len(mask) - 1)
