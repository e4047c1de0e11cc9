"""What the chat formats need of a tokenizer and its chat template."""

from collections.abc import Sequence
from typing import Protocol, Self


class ChatTokenizer(Protocol):
    """The part of a tokenizer that is needed here; HfChatTokenizer adapts a Hugging Face one.

    `control_ids` are the added tokens that are no blanks, `control_texts` their spellings;
    `normalizes` says that other characters than those may become such a token.
    """

    control_ids: frozenset[int]
    control_texts: tuple[str, ...]
    normalizes: bool

    @property
    def chat_template(self) -> str: ...

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """The chat template's text.

        May raise any exception for messages that the template refuses.
        """
        ...

    def not_thinking(self) -> Self:
        """The same, with the template's switch for thinking off, if it has one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of rendered text, as below."""
        ...

    def encode_with_offsets(
        self, text: str, goes_on: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of rendered text, and each id's (start, end) characters in it: added tokens are
        parsed, none are put before or after. `goes_on`: other text stands before this one.
        """
        ...

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of ids, with or without the special tokens."""
        ...
