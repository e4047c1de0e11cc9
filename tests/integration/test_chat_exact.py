"""What ChatFormat remembers and puts together is what the template and the tokenizer give."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stargate.config.run import DataConfig
from stargate.data.dataset import load_dataset
from stargate.resources.models import resolve_model
from stargate.text.chat import ChatFormat, HfChatTokenizer, Message
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import StopReason, Turn

pytestmark = pytest.mark.integration

MISTRAL_LIKE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_LIKE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|im_start|>system\n{{ system }}<|im_end|>{% for message in messages %}"
    "{% set content = '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim "
    "+ '<|im_end|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
# It looks: what it writes depends on what is said.
LOOKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if 'a' in m.content %}(a) {% endif %}{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"own": None, "mistral": MISTRAL_LIKE, "llama": LLAMA_LIKE, "looking": LOOKING}

_WORDS = [
    "What",
    " do",
    " you",
    "?",
    " I'm",
    "'s",
    " 42",
    "3.5",
    "\n",
    "\n\n",
    "  ",
    " ",
    "\t",
    ".",
]
_WORDS += [
    " Yes",
    '"',
    ": a",
    "! B",
    "é",
    " e\u0301a",
    "日本",
    "<|im_end|>",
    "<|im",
    " 🙂",
    "\u00a0",
    "a",
]
TEXTS = st.lists(st.sampled_from(_WORDS), max_size=14).map("".join) | st.text(max_size=30)
SAMPLED = st.lists(st.integers(3, 4000), max_size=5).map(tuple)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model("embedded"))


def chat_with(tokenizer: Any, template: str | None) -> ChatFormat:
    own = deepcopy(tokenizer)
    if template is not None:
        own.chat_template = template
    return ChatFormat(HfChatTokenizer(own), "test")


def forgetful(chat: ChatFormat) -> ChatFormat:
    """Renders and encodes everything as a whole, every time."""
    chat._copies_only = False
    chat._pieces.text = lambda text: tuple(chat._tokenizer.encode(text))  # type: ignore[assignment]
    return chat


@pytest.fixture(scope="module")
def chats(tokenizer: Any) -> dict[str, tuple[ChatFormat, ChatFormat]]:
    return {
        name: (chat_with(tokenizer, text), forgetful(chat_with(tokenizer, text)))
        for name, text in TEMPLATES.items()
    }


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """user, assistant, user, ...; assistant turns sampled or not, perhaps a system text before."""
    text = TEXTS.filter(lambda t: not set(t) & {"\ue000", "\ue001"})
    messages = [Message("system", draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 3))):
        messages.append(Message("user", draw(text)))
        stop = draw(st.sampled_from([StopReason.STOP, StopReason.LENGTH]))
        ids = draw(st.none() | SAMPLED)
        messages.append(Message("assistant", draw(text), ids, stop))
    return [*messages, Message("user", draw(text))]


@pytest.mark.parametrize("name", TEMPLATES)
def test_all_ids_are_those_of_the_whole_text(
    chats: dict[str, tuple[ChatFormat, ChatFormat]], name: str
) -> None:
    quick, slow = chats[name]

    @settings(max_examples=60, deadline=None)
    @given(conversations(), TEXTS.filter(lambda t: not set(t) & {"\ue000", "\ue001"}))
    def same(messages: list[Message], target: str) -> None:
        assert quick.prompt_ids(messages) == slow.prompt_ids(messages)
        assert quick.continuation(messages, target) == slow.continuation(messages, target)
        if name != "mistral":  # there a turn without a text has no end token to take from
            assert quick.with_target(messages, target) == slow.with_target(messages, target)
        if len(messages) > 1 and messages[-2].role == "assistant":
            assert quick.masked_ids(messages[:-1]) == slow.masked_ids(messages[:-1])

    same()


@pytest.mark.parametrize("prompts", ["paper", "small"])
def test_the_prompts_of_a_run_keep_their_ids(
    chats: dict[str, tuple[ChatFormat, ChatFormat]], prompts: str
) -> None:
    quick, slow = chats["own"]
    views = Views(load_prompts(prompts))
    num_compared = 0
    for pair in load_dataset(DataConfig()).pairs("A")[:40]:
        assert pair.gold is not None
        said = pair.gold.split(". ")
        turns: list[Turn] = []
        for text in said[:3]:
            ids = (*slow._tokenizer.encode(text), 2)
            for messages in (
                views.questioner(pair, turns),
                views.roleplayer(pair, turns, text.strip()),
                views.responder(pair, turns),
            ):
                assert quick.prompt_ids(messages) == slow.prompt_ids(messages)
                num_compared += 1
            turns.append(Turn(text, ids, StopReason.STOP, said[-1], ids, StopReason.STOP))
        scored = views.without_instruction(pair, turns)
        assert quick.continuation(scored, pair.gold) == slow.continuation(scored, pair.gold)
    assert num_compared == 360


def test_which_templates_copy_only(chats: dict[str, tuple[ChatFormat, ChatFormat]]) -> None:
    roles = ("system", "user", "assistant", "user")
    known = {name: quick._literals(roles, True) for name, (quick, _) in chats.items()}
    assert known["looking"] is None
    assert known["mistral"] is None  # it refuses a system message
    assert known["own"] == (
        "<|im_start|>system\n",
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    assert known["llama"] is not None
    bos, end = chats["mistral"][0]._literals(("user",), True) or ("", "")
    assert (bos.endswith("[INST] "), end) == (True, " [/INST]")
