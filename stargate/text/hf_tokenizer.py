"""A Hugging Face fast tokenizer, as stargate/text/chat.py needs it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from tokenizers.models import BPE

# What templates that write the date are told, so that a row can be rendered again on another day.
_TEMPLATE_DAY = datetime(2025, 1, 1)
# A blank, and SentencePiece's sign for one.
_BLANKS = " \t\r\n\u2581"


class HfChatTokenizer:
    """Adapts a Hugging Face fast tokenizer to ChatTokenizer.

    `template_kwargs` are the chat template's own switches (`enable_thinking`).
    """

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        # Without the wrapper, which takes several times as long as the encoding of a short text.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        added = tokenizer.added_tokens_decoder
        control = {i: token for i, token in added.items() if token.content.strip(_BLANKS)}
        self.control_ids = frozenset(control)
        self.control_texts = tuple(token.content for token in control.values())
        # What a model other than BPE has in its vocabulary, it finds in the normalised text.
        self.normalizes = self._backend.normalizer is not None and (
            not isinstance(self._backend.model, BPE)
            or any(token.normalized for token in control.values())
        )
        # An added token parts what follows from what stands before it, and is itself one id.
        self._anchor = next((t for t in self.control_texts if len(self.encode(t + "x")) == 2), "")

    @property
    def chat_template(self) -> str:
        """The template's source. Raises ValueError if there is none."""
        return str(self.tokenizer.get_chat_template())

    def render(
        self,
        messages: Sequence[dict[str, str]],
        add_generation_prompt: bool,
        template: str | None = None,
        **given: Any,
    ) -> str:
        """As ChatTokenizer has it; through another `template`, with variables `given` to it."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_TEMPLATE_DAY.strftime,
                **self.template_kwargs,
                **given,
            )
        )

    def not_thinking(self) -> Self:
        """The same, with the template's switch for thinking off."""
        if "enable_thinking" not in self.template_kwargs:
            return self
        return type(self)(self.tokenizer, self.template_kwargs | {"enable_thinking": False})

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_with_offsets(
        self, text: str, goes_on: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        anchor = self._anchor if goes_on else ""
        encoded = self._backend.encode(anchor + text, add_special_tokens=False)
        if not anchor:
            return list(encoded.ids), list(encoded.offsets)
        shift = len(anchor)
        return list(encoded.ids[1:]), [(a - shift, b - shift) for a, b in encoded.offsets[1:]]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )
