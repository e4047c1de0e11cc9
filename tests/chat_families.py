"""Chat formats of real families, and a dialogue that is played as engines see it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from stargate.text.chat import ChatFormat, Message
from stargate.text.hf_tokenizer import HfChatTokenizer
from tests.public_tokenizers import public_tokenizer

# The form of gpt-oss: a thought and an answer are messages of their own, in channels; of earlier
# turns only the answer is written, and the last one ends with another token than those.
HARMONY_LIKE = """
{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort|default('low') + '\n' }}
{{- strftime_now('%Y-%m-%d') + '<|end|>' }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- else %}
{{- '<|start|>' + ('developer' if m.role == 'system' else m.role) + '<|message|>' }}
{{- m.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
"""
# What each family's model may stop with, as its generation config says.
END_TEXTS = {
    "qwen3": ("<|im_end|>", "<|endoftext|>"),
    "gemma3": ("<end_of_turn>", "<eos>"),
    "llama3_1": ("<|eot_id|>", "<|end_of_text|>"),
    "gptoss": ("<|return|>", "<|endoftext|>", "<|call|>"),
}


@cache
def _loaded(family: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(public_tokenizer(family))
    if family == "gptoss":
        tokenizer.chat_template = HARMONY_LIKE
    return tokenizer


def family_tokenizer(family: str, **template_kwargs: Any) -> HfChatTokenizer:
    """Its tokenizer with its own template (gpt-oss: one like it). May skip the test."""
    return HfChatTokenizer(_loaded(family), template_kwargs)


def family_chat(family: str, **template_kwargs: Any) -> ChatFormat:
    return ChatFormat(family_tokenizer(family, **template_kwargs), family)


def ids_of(family: str, text: str) -> tuple[int, ...]:
    """Ids of a text in which control tokens are spelled out."""
    return tuple(family_tokenizer(family).encode(text))


def seen_and_sampled(chat: ChatFormat, messages: Sequence[Message]) -> tuple[int, ...]:
    """What an engine has before it after the last sampled message: played turn by turn, each prompt
    has to begin with the prompt before it and what was sampled then.
    """
    ids: tuple[int, ...] = ()
    for place, message in enumerate(messages):
        if message.token_ids is not None:
            prompt = chat.prompt_ids(messages[:place])
            assert prompt[: len(ids)] == ids
            ids = prompt + message.token_ids
    return ids
