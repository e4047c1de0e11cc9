"""What each role sees of one dialogue."""

from dataclasses import replace

import pytest

from stargate.text.chat import Message
from stargate.text.prompts import PromptSet, load_prompts
from stargate.text.views import Views
from stargate.types import StopReason
from tests.fakes.scripted import make_pair, make_turn

PROMPTS = PromptSet.model_validate(
    {
        "version": 1,
        "opening": "{{ name }}: {{ task }}",
        "closing": "{{ answer }} | {{ task }}",
        "questioner": {"turn": "{{ opening }} ASK"},
        "responder": {"turn": "{{ closing }} RESPOND"},
        "persona": "{{ opening }} [{{ persona }}]",
        "roleplayer": {"turn": "<{{ persona }}> {{ question }}"},
        "voice": {"turn": "{{ question }} = {{ facts | join('; ') }}"},
        "no_preference": "None.",
    }
)
VIEWS = Views(PROMPTS)
PAIR = make_pair()
TURNS = [make_turn("q1?", "a1"), make_turn("q2?", "a2")]


def shape(messages: list[Message]) -> list[str]:
    return [f"{m.role[0]} {m.text}" for m in messages]


def test_questioner_has_the_instruction_in_the_first_turn_only() -> None:
    assert shape(VIEWS.questioner(PAIR, TURNS)) == ["u P: t? ASK", "a q1?", "u a1", "a q2?", "u a2"]


def test_scoring_and_training_repeat_the_task_without_any_instruction() -> None:
    expected = ["u P: t?", "a q1?", "u a1", "a q2?", "u a2 | t?"]
    assert shape(VIEWS.without_instruction(PAIR, TURNS)) == expected
    response = Message("assistant", "r")
    assert shape(VIEWS.trained(PAIR, TURNS, response)) == [*expected, "a r"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (VIEWS.without_instruction(PAIR, []), ["u P: t?"]),  # no dialogue: the opening alone
        (VIEWS.responder(PAIR, []), ["u P: t? RESPOND"]),
        (VIEWS.questions_only(PAIR, TURNS), ["u P: t?", "a q1?", "u a1", "a q2?"]),
        (VIEWS.with_persona(PAIR), ["u P: t? [About p.]"]),
        (
            VIEWS.roleplayer(PAIR, TURNS, "q3?"),  # roles are swapped
            ["u <About p.> q1?", "a a1", "u q2?", "a a2", "u q3?"],
        ),
    ],
)
def test_what_each_role_sees(messages: list[Message], expected: list[str]) -> None:
    assert shape(messages) == expected


def test_responder_gets_its_instruction_in_the_last_turn() -> None:
    assert shape(VIEWS.responder(PAIR, TURNS))[-1] == "u a2 | t? RESPOND"


def test_policy_turns_carry_their_sampled_ids() -> None:
    question = VIEWS.questioner(PAIR, TURNS)[1]
    assert question.token_ids == TURNS[0].question_ids
    fixed = replace(make_turn(answer="none"), answer_stop=StopReason.FIXED, answer_ids=())
    own = VIEWS.roleplayer(PAIR, [fixed], "q2?")[1]
    assert own.token_ids is None  # tokenised as text: no model sampled it


def test_text_from_data_is_not_a_template() -> None:
    pair = make_pair(task="{{ name }}{% raw %}")
    assert shape(VIEWS.without_instruction(pair, []))[0] == "u P: {{ name }}{% raw %}?"


def test_packaged_prompt_sets_render_every_view() -> None:
    for name in ("paper", "small"):
        views = Views(load_prompts(name))
        for messages in (
            views.questioner(PAIR, TURNS),
            views.responder(PAIR, TURNS),
            views.with_persona(PAIR),
            views.roleplayer(PAIR, TURNS, "q?"),
            views.voice(PAIR, "q?", ["I like tea."]),
        ):
            assert messages[-1].role == "user"
        assert "t?" in views.without_instruction(PAIR, TURNS)[-1].text
