"""Token ids and loss masks, shown on literal ids of a byte tokenizer."""

import pytest

from stargate.errors import ModelError, RecordDropped
from stargate.text.chat import Message
from stargate.types import StopReason
from tests.fakes.scripted import ASSISTANT, END, SYSTEM, USER, ByteTokenizer, byte_chat

NL = ord("\n")


def test_prompt_ends_where_the_assistant_begins() -> None:
    ids = byte_chat().prompt_ids([Message("user", "hi")])
    assert ids == (USER, 104, 105, END, NL, ASSISTANT)


def test_sampled_ids_stay_as_they_are_and_only_they_have_loss() -> None:
    # The model sampled the ids 900 901 and the end token; no text gives these ids.
    question = Message("assistant", "??", (900, 901, END))
    response = Message("assistant", "!!", (902, END))
    messages = [Message("user", "a"), question, Message("user", "b"), response]
    masked = byte_chat().masked_ids(messages)
    assert masked.ids == (
        *(USER, 97, END, NL, ASSISTANT),
        *(900, 901, END),
        *(NL, USER, 98, END, NL, ASSISTANT),
        *(902, END),
    )
    assert masked.mask == (0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1)


def test_a_turn_that_was_cut_off_gets_an_end_token_without_loss() -> None:
    cut = Message("assistant", "??", (900, 901), stop=StopReason.LENGTH)
    masked = byte_chat().masked_ids([Message("user", "a"), cut, Message("user", "b"), _said()])
    assert masked.ids[5:9] == (900, 901, END, NL)
    assert masked.mask[5:9] == (1, 1, 0, 0)


def test_the_end_token_that_was_sampled_stays_and_is_learned_whichever_it_is() -> None:
    """It stopped with 55, the template would write END."""
    ended = Message("assistant", "?", (900, 55))
    messages = [Message("user", "a"), ended, Message("user", "b")]
    prompt = byte_chat().prompt_ids(messages)
    assert prompt[5:9] == (900, 55, NL, USER)
    masked = byte_chat().masked_ids([*messages, _said()])
    assert masked.ids == (*prompt, 900, END)
    assert masked.mask[5:9] == (1, 1, 0, 0)


def test_few_shot_assistant_text_has_no_loss() -> None:
    messages = [Message("user", "a"), Message("assistant", "x"), Message("user", "b"), _said()]
    masked = byte_chat().masked_ids(messages)
    assert sum(masked.mask) == 2
    assert masked.mask[-2:] == (1, 1)


def test_gold_is_split_from_its_context() -> None:
    context, gold = byte_chat().continuation([Message("user", "a")], "  ok\n")
    assert context == (USER, 97, END, NL, ASSISTANT)
    assert gold == (111, 107)


def test_target_has_loss_on_itself_and_its_end_token() -> None:
    masked = byte_chat().with_target([Message("user", "a"), _said(), Message("user", "b")], "ok")
    assert masked.ids[-3:] == (111, 107, END)
    assert masked.mask == (0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1)


def test_a_template_without_system_role_gets_it_in_the_first_user_turn() -> None:
    messages = [Message("system", "S"), Message("user", "u")]
    with_role = byte_chat().prompt_ids(messages)
    assert with_role[:4] == (SYSTEM, 83, END, NL)
    without = byte_chat(system_role=False).prompt_ids(messages)
    assert without == (USER, 83, NL, NL, 117, END, NL, ASSISTANT)


def test_control_tokens_spelled_out_in_text_stay_its_characters() -> None:
    text = "x<e>\n<a>y<<e>"
    ids = byte_chat().prompt_ids([Message("user", text)])
    assert ids == (USER, *map(ord, text), END, NL, ASSISTANT)
    _, gold = byte_chat().continuation([Message("user", "a")], text)
    assert gold == (*map(ord, text),)
    assert byte_chat().count(text) == len(text)


def test_text_with_the_placeholder_character_is_dropped() -> None:
    with pytest.raises(RecordDropped, match="reserved_character"):
        byte_chat().prompt_ids([Message("user", "\ue0000\ue001")])


def test_a_template_that_loses_turns_is_a_model_error() -> None:
    class Forgetful(ByteTokenizer):
        def render(self, messages, add_generation_prompt):  # type: ignore[no-untyped-def]
            return super().render(messages[-1:], add_generation_prompt)

    from stargate.text.chat import ChatFormat

    chat = ChatFormat(Forgetful(), "forgetful")
    with pytest.raises(ModelError, match=r"forgetful: its chat template lost .*expected 1"):
        chat.prompt_ids([Message("user", "a"), _said(), Message("user", "b")])


def _said() -> Message:
    return Message("assistant", "z", (900, END))


def test_a_template_without_a_form_for_answers_is_a_model_error() -> None:
    class Mute(ByteTokenizer):
        def render(self, messages, add_generation_prompt):  # type: ignore[no-untyped-def]
            if messages[-1]["role"] == "assistant":
                raise ValueError("who speaks?")
            return super().render(messages, add_generation_prompt)

    from stargate.text.chat import ChatFormat

    with pytest.raises(ModelError, match="mute: its chat template failed: who speaks"):
        ChatFormat(Mute(), "mute").stop_ids  # noqa: B018  # it is computed when it is asked for
