"""From messages to token ids, through a model's own chat template.

    prompt 1 | question 1 | what the template writes up to question 2 | question 2 | ...
    template   sampled ids  template                                    sampled ids

A dialogue is never tokenised twice: what a model sampled stays as ids, with the end token that it
chose. What stands before a sampled text are the ids of the prompt that it answered, also where the
template writes earlier turns in another way once they are past (Qwen3 takes thoughts out of them):
each turn's prompt is rendered with placeholders for the sampled texts before it, and what the
template wrote after the last of those is added. So a prompt begins with the prompt before it and
its answer, and rollout and training see the same ids, for any template. The loss mask is known
without searching in text.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, Literal

from stargate.errors import ModelError, one_line
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.text.plain_text import HOLE_CLOSE, HOLE_OPEN, PlainText
from stargate.text.reasoning import knows_thoughts, open_thought, speech_start
from stargate.text.tokenizer import ChatTokenizer
from stargate.types import Generation, StopReason

Role = Literal["system", "user", "assistant"]

# Conversations whose last template text is remembered as ids, some kB each. What stands before the
# first sampled text is the same in all turns of a dialogue, and in all dialogues of a pair.
_MAX_TEXTS = 4096
_HOLE = re.compile(f"{HOLE_OPEN}(\\d+){HOLE_CLOSE}")
_FIRST = f"{HOLE_OPEN}0{HOLE_CLOSE}"

# (role, text or placeholder) of each message.
_Rendered = tuple[tuple[str, str], ...]
_HELLO: _Rendered = (("user", "hello"),)
# Ids that stand together, and whether they have loss.
_Part = tuple[Sequence[int], bool]


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


@dataclass(frozen=True, slots=True)
class MaskedIds:
    """Ids and loss mask, both (T,); mask 1 where the token was sampled by the policy or is the
    target.
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]


class ChatFormat:
    """Renders messages for one model.

    With `spoken_only` the thoughts before a sampled text are left out, and none is begun: as others
    see the dialogue. Raises ModelError if the model has no usable chat template.
    """

    def __init__(self, tokenizer: ChatTokenizer, name: str, spoken_only: bool = False) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._spoken_only = spoken_only
        self._plain = PlainText(tokenizer)
        self._segment_ids = lru_cache(_MAX_TEXTS)(self._segment_ids_now)
        self._speech_start = lru_cache(_MAX_TEXTS)(self._speech_start_now)
        # The golds of a dialogue come one after the other.
        self._segment = lru_cache(1)(self._segment_now)
        self._has_system_role = self._probe_system_role()
        self._thinks = any(map(knows_thoughts, (tokenizer.chat_template, *tokenizer.control_texts)))

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids (T,) of the conversation, ending where the assistant's next turn begins."""
        return _joined(self._prompt(self.without_system_role(messages)))

    def masked_ids(self, messages: Sequence[Message]) -> MaskedIds:
        """Ids and loss mask of a conversation that ends with what the assistant sampled.

        The mask is 1 on every sampled id; the end token is among them only if the model sampled it.
        What follows the last id with loss is left out.
        """
        if not messages or messages[-1].token_ids is None:
            raise ValueError("masked_ids needs a conversation that ends with a sampled message")
        *before, last = self.without_system_role(messages)
        masked = _masked([*self._prompt(before), self._sampled(last)])
        keep = _last_one(masked.mask) + 1
        return MaskedIds(masked.ids[:keep], masked.mask[:keep])

    def with_target(self, messages: Sequence[Message], target: str) -> MaskedIds:
        """The ids and mask of a conversation and a text that no model sampled (a gold):

        the target and its end token have mask 1.
        """
        context, target_ids = self._split(messages, target)
        return _masked([*context, (target_ids, True), (self._end_ids, True)])

    def continuation(
        self, messages: Sequence[Message], target: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Splits conversation + target into (context ids (T,), target ids (G,)).

        The target is tokenised where it stands, after the template's header, because some
        tokenizers merge across the border; a token that covers the first target character counts to
        the target.
        """
        context, target_ids = self._split(messages, target)
        return _joined(context), target_ids

    def count(self, text: str) -> int:
        """How many tokens a plain text has."""
        return len(self._plain.ids(self._plain.cut(text)))

    def heard(self, generation: Generation) -> Generation:
        """What this model sampled, with the text that others hear: without its thoughts.

        A text that ends within a thought was cut off before a word of it was said.
        """
        if not self._thinks:
            return generation
        start = self._speech_start(generation.token_ids)
        if start is None:
            return replace(generation, text="", stop=StopReason.LENGTH)
        return replace(generation, text=self._tokenizer.decode(generation.token_ids[start:]))

    def without_thoughts(self) -> "ChatFormat":
        """The format in which thoughts are left out; this one if the model has none."""
        if not self._thinks:
            return self
        return ChatFormat(self._tokenizer.not_thinking(), self._name, spoken_only=True)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The id with which the template ends an assistant's turn, if it is a token of its own."""
        return self._end_ids[-1:]

    def _prompt(self, messages: Sequence[Message]) -> list[_Part]:
        return [*self._history(messages), (self._following_ids(messages), False)]

    def _history(self, messages: Sequence[Message]) -> list[_Part]:
        """The conversation up to the end of its last sampled message."""
        parts: list[_Part] = []
        for place, message in enumerate(messages):
            if message.token_ids is not None:
                before = self._following_ids(messages[:place], self._spoken_only)
                parts += [(before, False), self._sampled(message)]
        return parts

    def _sampled(self, message: Message) -> _Part:
        ids = message.token_ids or ()
        if self._spoken_only:
            ids = ids[self._speech_start(ids) or 0 :]
        return ids, message.learned

    def _following_ids(
        self, messages: Sequence[Message], no_thought: bool = False
    ) -> tuple[int, ...]:
        """What the template writes after the last sampled message (or at all), up to where the
        assistant begins; where the model ended its turn itself, without the template's end of it.
        """
        ids = self._segment_ids(self._with_holes(messages), no_thought)
        return ids[self._num_ended(messages, ids) :]

    def _num_ended(self, messages: Sequence[Message], following: Sequence[int]) -> int:
        """How many of the ids that the template wrote after the last sampled message end it, though
        the model did so itself: with this id or another one.
        """
        last = next((m for m in reversed(messages) if m.token_ids is not None), None)
        if last is None or not last.token_ids or last.stop is not StopReason.STOP:
            return 0
        if following[:1] == last.token_ids[-1:]:
            return 1
        return self._num_to_control(following) if self._end_ids else 0

    def _num_to_control(self, ids: Sequence[int]) -> int:
        """The length of the part that ends with the first control token; 0 if there is none."""
        control_ids = self._tokenizer.control_ids
        return next((n for n, i in enumerate(ids, start=1) if i in control_ids), 0)

    def _with_holes(self, messages: Sequence[Message]) -> _Rendered:
        rendered, holes = [], 0
        for message in messages:
            text = f"{HOLE_OPEN}{holes}{HOLE_CLOSE}"
            if message.token_ids is None:
                text = self._plain.cut(message.text)
            else:
                holes += 1
            rendered.append((message.role, text))
        return tuple(rendered)

    def _segment_ids_now(self, messages: _Rendered, no_thought: bool) -> tuple[int, ...]:
        return self._plain.ids(self._segment(messages, no_thought))

    def _render(self, messages: _Rendered, add_generation_prompt: bool = True) -> str:
        """The template's text. Raises ModelError."""
        try:
            return self._tokenizer.render(
                [{"role": role, "content": text} for role, text in messages], add_generation_prompt
            )
        except Exception as error:  # a template is foreign code and may raise anything
            problem = one_line(error)
            raise ModelError(f"{self._name}: its chat template failed: {problem}") from error

    def _segment_now(self, messages: _Rendered, no_thought: bool = False) -> str:
        """The template's text after the last placeholder, up to where the assistant begins; with
        `no_thought` up to where it speaks.
        """
        parts = _HOLE.split(self._render(messages))
        order = [int(index) for index in parts[1::2]]
        expected = sum(_HOLE.fullmatch(content) is not None for _, content in messages)
        if order != list(range(expected)):
            raise ModelError(
                f"{self._name}: its chat template lost or reordered assistant turns "
                f"(expected {expected} in order, got {order})"
            )
        return parts[-1] + (self._no_thought if no_thought else "")

    @cached_property
    def _no_thought(self) -> str:
        """What stands between the assistant's header and a text that comes without a thought.

        The template knows it where it writes a finished turn in this way; else an open thought is
        closed.
        """
        if not self._thinks:
            return ""
        prompt, (finished, _) = self._render(_HELLO), self._around_reply
        if finished.startswith(prompt):
            return finished[len(prompt) :]
        closing = open_thought(prompt)
        ending = f"\n{closing}\n\n" if closing else ""
        if speech_start(prompt + ending) is None:
            raise ModelError(
                f"{self._name}: its chat template begins every answer with a thought, and how one "
                f"ends is not known; got {prompt[-40:]!r}"
            )
        return ending

    @cached_property
    def _end_ids(self) -> tuple[int, ...]:
        """The ids with which the template ends the last turn of an assistant."""
        ids = self._plain.ids(self._around_reply[1])
        return ids[: self._num_to_control(ids)]

    @cached_property
    def _around_reply(self) -> tuple[str, str]:
        """What the template writes before and after the assistant's reply to a greeting."""
        before, _, after = self._render((*_HELLO, ("assistant", _FIRST)), False).partition(_FIRST)
        return before, after

    @cached_property
    def _opens_thought(self) -> bool:
        return open_thought(self._render(_HELLO)) is not None

    def _speech_start_now(self, ids: tuple[int, ...]) -> int | None:
        """The index of the first sampled id that is said; None if the text ends in a thought."""
        if not self._thinks:
            return 0

        def written(num: int) -> str:
            return self._tokenizer.decode(ids[:num], special=True)

        place = speech_start(written(len(ids)), self._opens_thought)
        if not place:
            return place
        first = bisect_left(range(len(ids)), place, key=lambda num: len(written(num)))
        while first < len(ids) and not self._tokenizer.decode(ids[first : first + 1], True).strip():
            first += 1
        return first

    def without_system_role(self, messages: Sequence[Message]) -> Sequence[Message]:
        """As the template takes them: without a system role its text begins the first user turn."""
        if self._has_system_role or not messages or messages[0].role != "system":
            return messages
        system, *others = messages
        if not others or others[0].role != "user":
            return [Message("user", system.text), *others]
        return [Message("user", f"{system.text}\n\n{others[0].text}"), *others[1:]]

    def _split(
        self, messages: Sequence[Message], target: str
    ) -> tuple[list[_Part], tuple[int, ...]]:
        """The context before a target, and the target's ids."""
        messages = self.without_system_role(messages)
        header = self._segment(self._with_holes(messages), no_thought=True)
        text = header + self._plain.cut(target.strip())
        ids, offsets = self._plain.ids_and_offsets(text)
        split = next((i for i, (_, end) in enumerate(offsets) if end > len(header)), len(ids))
        before = tuple(ids[self._num_ended(messages, ids) : split])
        return [*self._history(messages), (before, False)], tuple(ids[split:])

    def _probe_system_role(self) -> bool:
        probe = "probe of the system role"
        user = {"role": "user", "content": "hello"}
        try:
            self._tokenizer.render([user], True)
        except Exception as error:  # foreign code, as above
            raise ModelError(f"{self._name}: no usable template: {one_line(error)}") from error
        try:
            text = self._tokenizer.render([{"role": "system", "content": probe}, user], True)
        except Exception:
            return False
        return probe in text


def load_chat_format(
    model_dir: str,
    trust_remote_code: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> ChatFormat:
    """The chat format of a model folder. A template that can switch thinking off is told to, unless
    `template_kwargs` says otherwise.

    Raises ModelError if its tokenizer or template can't be used.
    """
    return ChatFormat(load_tokenizer(model_dir, trust_remote_code, template_kwargs), model_dir)


def load_tokenizer(
    model_dir: str,
    trust_remote_code: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> HfChatTokenizer:
    """The tokenizer of a model folder, with its template's switches as above. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        problem = one_line(error)
        raise ModelError(f"{model_dir}: can't load its tokenizer: {problem}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{model_dir}: needs a fast tokenizer (tokenizer.json), got a slow one")
    known = set(re.findall(r"\w+", str(tokenizer.chat_template)))
    given = dict(template_kwargs or {})
    for name in given.keys() - known:
        raise ModelError(
            f"{model_dir}: chat_template_kwargs: its chat template knows no {name!r}; leave it out"
        )
    if "enable_thinking" in known:
        given = {"enable_thinking": False} | given
    return HfChatTokenizer(tokenizer, given)


def _joined(parts: Sequence[_Part]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(ids for ids, _ in parts))


def _masked(parts: Sequence[_Part]) -> MaskedIds:
    mask = chain.from_iterable((int(learned),) * len(ids) for ids, learned in parts)
    return MaskedIds(_joined(parts), tuple(mask))


def _last_one(mask: Sequence[int]) -> int:
    """Index of the last 1; the end of the sequence if there is none."""
    return next((i for i in range(len(mask) - 1, -1, -1) if mask[i]), len(mask) - 1)
