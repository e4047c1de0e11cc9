"""What each role sees of one dialogue."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

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


AUTHORS = Path(__file__).parent / "authors_structure.yaml"


def test_a_prompt_file_may_have_the_authors_structure() -> None:
    views = Views(load_prompts(str(AUTHORS)))
    opening = "My name is P.\n\nt?"
    responder = shape(views.responder(PAIR, TURNS))
    assert responder[0].startswith("u At the end") and responder[0].endswith(opening)
    assert responder[1:] == ["a q1?", "u a1", "a q2?", "u a2\n\nt?"]
    [alone] = shape(views.responder(PAIR, []))
    assert alone.startswith("u At the end") and alone.endswith(opening)
    # Context distillation: nothing of the instruction where golds are scored and texts trained on.
    assert shape(views.without_instruction(PAIR, TURNS)) == [f"u {opening}", *responder[1:]]
    [persona] = shape(views.with_persona(PAIR))
    assert persona == f"u This is who I am: About p.\n\n{opening}"
    [message] = views.roleplayer(PAIR, TURNS, "q3?")
    said = "Assistant: q1?\nYou: a1\nAssistant: q2?\nYou: a2\nAssistant: q3?\n"
    assert message.role == "user" and said in message.text
    [first] = views.roleplayer(PAIR, [], "q1?")
    assert "You: " not in first.text and "Assistant: q1?" in first.text


def test_the_docs_show_the_tested_prompt_file() -> None:
    page = (Path(__file__).parents[3] / "docs" / "paper.md").read_text()
    [shown] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    whole = yaml.safe_load(AUTHORS.read_text())
    assert all(whole[key] == value for key, value in yaml.safe_load(shown).items())


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
