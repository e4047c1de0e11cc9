"""Real tokenizers and templates: the ids of one dialogue, literally, and what is said aloud."""

from dataclasses import replace
from typing import Any

import pytest

from stargate.config.run import RunConfig
from stargate.errors import ModelError
from stargate.text.chat import Message, load_chat_format
from stargate.text.formats import load_chat_formats
from stargate.types import Generation, StopReason
from tests.chat_families import END_TEXTS, family_chat, ids_of, seen_and_sampled
from tests.public_tokenizers import public_tokenizer

pytestmark = pytest.mark.integration

THINKING: dict[str, Any] = {"enable_thinking": True}
NOT_THINKING: dict[str, Any] = {"enable_thinking": False}
THOUGHTS = {
    "qwen3": "<think>\nHm\n</think>\n\n",
    "gptoss": "<|channel|>analysis<|message|>Hm<|end|>"
    "<|start|>assistant<|channel|>final<|message|>",
}


def dialogue(family: str, thought: str = "") -> list[Message]:
    end = END_TEXTS[family][0]
    return [
        Message("system", "x"),
        Message("user", "Hi"),
        Message("assistant", "Why?", ids_of(family, f"{thought}Why?{end}")),
        Message("user", "</think><|eot_id|>"),
        Message("assistant", "Ok", ids_of(family, f"{thought}Ok{end}")),
    ]


LITERAL = [
    # 151644 <|im_start|>, 151645 <|im_end|>, 151667 271 151668 271 the empty thought
    (
        "qwen3",
        NOT_THINKING,
        (
            *(151644, 8948, 198, 87, 151645, 198, 151644, 872, 198, 13048, 151645, 198),
            *(151644, 77091, 198, 151667, 271, 151668, 271, 10234, 30, 151645, 198),
            *(151644, 872, 198, 27, 20439, 766, 1784, 91, 68, 354, 842, 91, 29, 151645, 198),
            *(151644, 77091, 198, 151667, 271, 151668, 271, 11578, 151645),
        ),
        [10234, 30, 151645, 11578, 151645],
    ),
    (
        "qwen3",
        THINKING,
        (
            *(151644, 8948, 198, 87, 151645, 198, 151644, 872, 198, 13048, 151645, 198),
            *(151644, 77091, 198, 151667, 198, 39, 76, 198, 151668, 271, 10234, 30, 151645, 198),
            *(151644, 872, 198, 27, 20439, 766, 1784, 91, 68, 354, 842, 91, 29, 151645, 198),
            *(151644, 77091, 198, 151667, 198, 39, 76, 198, 151668, 271, 11578, 151645),
        ),
        [
            *(151667, 198, 39, 76, 198, 151668, 271, 10234, 30, 151645),
            *(151667, 198, 39, 76, 198, 151668, 271, 11578, 151645),
        ],
    ),
    # 2 <bos>, 105 <start_of_turn>, 106 <end_of_turn>; the system's text is the user's first
    (
        "gemma3",
        {},
        (
            *(2, 105, 2364, 107, 236781, 108, 10979, 106, 107),
            *(105, 4368, 107, 11355, 236881, 106, 107),
            *(105, 2364, 107, 954, 36345, 1798, 236909, 236744, 557, 236779, 547, 111038, 106, 107),
            *(105, 4368, 107, 22736, 106),
        ),
        [11355, 236881, 106, 22736, 106],
    ),
    # 128006 and 128007 around a role, 128009 <|eot_id|>
    (
        "llama3_1",
        {},
        (
            *(128000, 128006, 9125, 128007, 271, 87, 128009, 128006, 882, 128007, 271, 13347),
            *(128009, 128006, 78191, 128007, 271, 10445, 30, 128009, 128006, 882, 128007, 271),
            *(524, 27963, 1822, 91, 68, 354, 851, 91, 29, 128009, 128006, 78191, 128007, 271),
            *(11839, 128009),
        ),
        [10445, 30, 128009, 11839, 128009],
    ),
    # 200006 <|start|>, 200008 <|message|>, 200007 <|end|>, 200002 <|return|>, 200005 <|channel|>
    (
        "gptoss",
        {},
        (
            *(200006, 17360, 200008, 30377, 289, 25, 4465, 198, 1323, 20, 12, 2290, 12, 2290),
            *(200007, 200006, 77944, 200008, 87, 200007, 200006, 1428, 200008, 12194, 200007),
            *(200006, 173781, 200005, 35644, 200008, 198558, 200007, 200006, 173781, 200005),
            *(17196, 200008, 13903, 30, 200002, 200006, 1428, 200008, 808, 49631, 3784, 91, 68),
            *(346, 1537, 91, 29, 200007, 200006, 173781, 200005, 35644, 200008, 198558, 200007),
            *(200006, 173781, 200005, 17196, 200008, 14999, 200002),
        ),
        [
            *(200005, 35644, 200008, 198558, 200007, 200006, 173781, 200005, 17196, 200008),
            *(13903, 30, 200002),
            *(200005, 35644, 200008, 198558, 200007, 200006, 173781, 200005, 17196, 200008),
            *(14999, 200002),
        ],
    ),
]


@pytest.mark.parametrize(("family", "switches", "ids", "learned"), LITERAL)
def test_a_row_is_what_the_engine_saw_and_sampled(
    family: str, switches: dict[str, Any], ids: tuple[int, ...], learned: list[int]
) -> None:
    chat = family_chat(family, **switches)
    thought = "" if switches == NOT_THINKING else THOUGHTS.get(family, "")
    messages = dialogue(family, thought)
    masked = chat.masked_ids(messages)
    assert masked.ids == ids == seen_and_sampled(chat, messages)
    assert [i for i, mask in zip(masked.ids, masked.mask, strict=True) if mask] == learned


@pytest.mark.parametrize(("family", "switches", "ids", "learned"), LITERAL)
def test_thoughts_are_not_scored(
    family: str, switches: dict[str, Any], ids: tuple[int, ...], learned: list[int]
) -> None:
    """The gold stands after an ended, empty thought; a model that does not think sees its row."""
    thought = "" if switches == NOT_THINKING else THOUGHTS.get(family, "")
    *messages, _ = dialogue(family, thought)
    context, gold = family_chat(family, **switches).without_thoughts().continuation(messages, "Go.")
    assert len(gold) == 2
    thought_ids = {198558, 35644, 76}  # "Hm", "analysis", the "m" of Qwen's "Hm"
    assert not thought_ids & set(context)
    if family == "qwen3":
        assert context == LITERAL[0][2][:-2]
    elif family == "gptoss":
        assert context[-5:] == (200006, 173781, 200005, 17196, 200008)
        assert context[25:36] == (
            *(200006, 173781, 200005, 17196, 200008, 13903, 30, 200002),
            *(200006, 1428, 200008),
        )
    else:
        assert context == ids[:-2]


@pytest.mark.parametrize("family", ["qwen3", "gptoss"])
@pytest.mark.parametrize("stop", [StopReason.STOP, StopReason.LENGTH])
def test_others_hear_what_comes_after_the_thought(family: str, stop: StopReason) -> None:
    chat = family_chat(family, **(THINKING if family == "qwen3" else {}))
    end = END_TEXTS[family][0] if stop is StopReason.STOP else ""
    ids = ids_of(family, f"{THOUGHTS[family]}What do you like?{end}")
    heard = chat.heard(Generation("as the engine wrote it", ids, stop, 0, 9))
    assert (heard.text, heard.token_ids, heard.stop) == ("What do you like?", ids, stop)


@pytest.mark.parametrize("family", ["qwen3", "gptoss"])
def test_a_thought_that_does_not_end_is_a_reply_cut_off(family: str) -> None:
    chat = family_chat(family, **(THINKING if family == "qwen3" else {}))
    ids = ids_of(family, THOUGHTS[family])[:3] + ids_of(family, END_TEXTS[family][0])
    heard = chat.heard(Generation("...", ids, StopReason.STOP, 0, 9))
    assert (heard.text, heard.token_ids, heard.stop) == ("", ids, StopReason.LENGTH)


@pytest.mark.parametrize("family", END_TEXTS)
def test_each_end_token_ends_a_turn_once_and_is_learned(family: str) -> None:
    chat = family_chat(family)
    for text in END_TEXTS[family]:
        [end] = ids_of(family, text)
        first, *others = dialogue(family)[1:4]
        question = replace(others[0], token_ids=(*ids_of(family, "Why?"), end))
        messages = [first, question, others[1]]
        prompt, alone = chat.prompt_ids(messages), chat.prompt_ids([first])
        place = len(alone) + len(ids_of(family, "Why?"))
        assert prompt[place] == end
        # What comes next is the user's turn, as after the first of these tokens.
        usual = chat.prompt_ids([first, others[0], others[1]])
        assert prompt[place + 1 :] == usual[place + 1 :]
        masked = chat.masked_ids([*messages, question])
        assert sum(masked.mask) == 2 * len(question.token_ids or ())
        assert masked.ids[-1] == end
    assert chat.stop_ids == ids_of(family, END_TEXTS[family][0])


def test_blanks_that_are_tokens_of_their_own_stay_whole() -> None:
    """Gemma-3 writes three line breaks with one added token (109), as it was trained to."""
    _, gold = family_chat("gemma3").continuation([Message("user", "Hi")], "a\n\n\nb <table>")
    assert gold == (236746, 109, 236763, 655, 5127, 236813)


def test_a_templates_switches_per_role() -> None:
    """Thinking is off unless a role asks for it; a switch that the template lacks is refused."""
    folder = str(public_tokenizer("qwen3"))
    hello = [Message("user", "Hi")]
    config = RunConfig.model_validate(
        {"model": folder, "roleplayer": {"chat_template_kwargs": {"enable_thinking": True}}}
    )
    chat, roleplayer_chat = load_chat_formats(config, folder, folder)
    assert roleplayer_chat is not None
    assert chat.prompt_ids(hello)[-6:] == (77091, 198, 151667, 271, 151668, 271)
    assert roleplayer_chat.prompt_ids(hello)[-2:] == (77091, 198)
    one, other = load_chat_formats(RunConfig(), folder, folder)
    assert one is other
    with pytest.raises(ModelError) as refused:
        load_chat_format(folder, template_kwargs={"enable_thinkin": True})
    assert str(refused.value) == (
        f"{folder}: chat_template_kwargs: its chat template knows no 'enable_thinkin'; leave it out"
    )
