"""Real tokenizer, several real chat templates: the template's own ids, literal masks."""

import pytest

from stargate.resources.models import resolve_model
from stargate.text.chat import ChatFormat, Message, load_chat_format
from stargate.text.hf_tokenizer import HfChatTokenizer
from stargate.types import StopReason

pytestmark = pytest.mark.integration

# The forms in which other families write chats. The tokenizer stays the embedded model's.
MISTRAL_LIKE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model("embedded"))


def chat_with(tokenizer, template: str | None) -> ChatFormat:  # type: ignore[no-untyped-def]
    from copy import deepcopy

    own = deepcopy(tokenizer)
    if template is not None:
        own.chat_template = template
    return ChatFormat(HfChatTokenizer(own), "test")


@pytest.mark.parametrize("template", [None, MISTRAL_LIKE, GEMMA_LIKE], ids=["own", "inst", "gemma"])
def test_ids_equal_the_templates_own(tokenizer, template: str | None) -> None:  # type: ignore[no-untyped-def]
    """Where the sampled ids are the text's own tokens, the result is as if all was text."""
    end = tokenizer.eos_token_id
    question = "What do you like to read?"
    ids = (*tokenizer(question, add_special_tokens=False)["input_ids"], end)
    messages = [
        Message("user", "My name is Ann.\n\nWhich book?"),
        Message("assistant", question, ids),
        Message("user", "Sea stories.\n\nWhich book?"),
    ]
    plain = [{"role": m.role, "content": m.text} for m in messages]
    own = chat_with(tokenizer, template)
    reference = tokenizer.apply_chat_template(
        plain, chat_template=template, add_generation_prompt=True, tokenize=True
    )
    expected = reference["input_ids"] if hasattr(reference, "keys") else reference
    assert list(own.prompt_ids(messages)) == list(expected)


@pytest.mark.parametrize("template", [MISTRAL_LIKE, GEMMA_LIKE], ids=["inst", "gemma"])
def test_a_template_without_system_role_works(tokenizer, template: str) -> None:  # type: ignore[no-untyped-def]
    chat = chat_with(tokenizer, template)
    merged = chat.prompt_ids([Message("system", "Be kind."), Message("user", "Hi.")])
    assert merged == chat.prompt_ids([Message("user", "Be kind.\n\nHi.")])


def test_there_is_one_bos_at_most(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids = chat_with(tokenizer, MISTRAL_LIKE).prompt_ids([Message("user", "Hi.")])
    assert ids.count(tokenizer.bos_token_id) == 1


def test_literal_ids_and_mask_of_the_embedded_model() -> None:
    """SmolLM2: 1 is <|im_start|>, 2 <|im_end|>, 198 a newline, 4093 user, 520 9531 assistant."""
    chat = load_chat_format(str(resolve_model("embedded")))
    messages = [
        Message("system", "x"),
        Message("user", "Hi"),
        Message("assistant", "Why?", (7138, 47, 2)),
        Message("user", "So"),
        Message("assistant", "cut", (9999,), StopReason.LENGTH),
    ]
    masked = chat.masked_ids(messages)
    assert masked.ids == (
        *(1, 9690, 198, 104, 2, 198),
        *(1, 4093, 198, 26843, 2, 198),
        *(1, 520, 9531, 198, 7138, 47, 2, 198),
        *(1, 4093, 198, 2931, 2, 198),
        *(1, 520, 9531, 198, 9999),
    )
    assert [masked.ids[i] for i, m in enumerate(masked.mask) if m] == [7138, 47, 2, 9999]


def test_a_gold_is_the_assistants_text_alone() -> None:
    chat = load_chat_format(str(resolve_model("embedded")))
    context, gold = chat.continuation([Message("user", "Hi")], "Read it.")
    assert context[-4:] == (1, 520, 9531, 198)
    assert len(gold) == 3
    target = chat.with_target([Message("user", "Hi")], "Read it.")
    assert target.ids == (*context, *gold, 2)
    assert sum(target.mask) == 4
