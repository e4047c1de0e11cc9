"""What is checked of a chat format before anything starts, and what others hear of a model."""

import asyncio
from collections.abc import Sequence

import pytest

from stargate.config.run import RunConfig
from stargate.errors import ConfigError, ModelError
from stargate.text.chat import ChatFormat
from stargate.text.formats import check_formats, heard_from
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import GenerateRequest, Sampling
from tests.fakes.scripted import END, ByteTokenizer, ScriptedGenerate, byte_chat

VIEWS = Views(load_prompts("paper"))


def check(chat: ChatFormat, roleplayer_chat: ChatFormat | None = None, **config: object) -> None:
    check_formats(RunConfig.model_validate(config), chat, VIEWS, roleplayer_chat or chat, VIEWS)


def test_every_role_can_be_rendered() -> None:
    check(byte_chat())
    check(byte_chat(system_role=False))
    check(byte_chat(), roleplayer={"grounding": {"type": "facts"}})


class OneTurn(ByteTokenizer):
    """A template for a question and an answer, no more."""

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        if sum(message["role"] == "user" for message in messages) > 2:
            raise ValueError("one question only")
        return super().render(messages, add_generation_prompt)


def test_a_template_that_refuses_a_role_is_named_before_anything_starts() -> None:
    with pytest.raises(ModelError) as problem:
        check(byte_chat(), ChatFormat(OneTurn(), "my/model"))
    assert str(problem.value) == (
        "my/model: its chat template failed: one question only; "
        "what the Roleplayer sees: user assistant user assistant user"
    )
    short = {"rollout": {"turns": [1]}, "evaluation": {"turns": [1]}}
    check(ChatFormat(OneTurn(), "my/model"), **short)
    with pytest.raises(ModelError, match="what the Questioner sees: user assistant user assistant"):
        check(ChatFormat(OneTurn(), "my/model"))


class OpensThoughts(ByteTokenizer):
    """Every answer begins with a thought; how such a one ends, no table knows."""

    chat_template = "<|START_THINKING|>"

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        text = super().render(messages, add_generation_prompt)
        return text + ("<|START_THINKING|>" if add_generation_prompt else "")


def test_a_thought_that_nobody_knows_how_to_end_is_refused() -> None:
    with pytest.raises(ModelError, match="begins every answer with a thought, and how one ends"):
        check(ChatFormat(OpensThoughts(), "my/model"))


def test_a_text_ends_where_the_template_ends_a_turn() -> None:
    generate = ScriptedGenerate(lambda request: "hi")
    request = GenerateRequest("r", "s", (1,), Sampling(0.0, 1.0, 5, 0))
    heard = asyncio.run(heard_from(generate, byte_chat())(request))
    assert heard.text == "hi"
    assert generate.requests[0].sampling.stop_ids == (END,)


def test_texts_of_users_are_tried_before_anything_starts() -> None:
    bare = Views(load_prompts("paper").model_copy(update={"users": None}))
    wrong = load_prompts("paper")
    assert wrong.users is not None
    users = wrong.users.model_copy(update={"takes_back": "{{ facts }}"})
    for user in ({"style": ["plain", "terse"]}, {"patience": 2}):
        for grounding in ("persona", "facts"):
            config = RunConfig.model_validate(
                {"roleplayer": {"grounding": {"type": grounding}, **user}}
            )
            check_formats(config, byte_chat(), VIEWS, byte_chat(), VIEWS)
            with pytest.raises(ConfigError, match="no texts for roleplayer"):
                check_formats(config, byte_chat(), VIEWS, byte_chat(), bare)
            with pytest.raises(ConfigError, match="'facts' is undefined"):
                views = Views(wrong.model_copy(update={"users": users}))
                check_formats(config, byte_chat(), VIEWS, None, views)
