"""Prompt templates that only copy their values are put together as Jinja would render them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stargate.errors import ConfigError
from stargate.text.prompts import PromptSet, load_prompts
from stargate.text.skeleton import copied_parts

VALUES = st.text(max_size=12) | st.sampled_from(["{{ name }}", "<b>", " x", "x\n", "\ue0000\ue001"])
NAMES = ("name", "task", "opening", "answer", "closing", "persona", "question")


def prompt_sets() -> list[PromptSet]:
    return [load_prompts("paper"), load_prompts("small")]


def templates(prompts: PromptSet) -> list[str]:
    turns = [c.turn for c in (prompts.questioner, prompts.responder, prompts.roleplayer)]
    return [prompts.opening, prompts.closing, prompts.persona, *turns]


@settings(deadline=None, max_examples=60)
@given(st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES)))
def test_every_packaged_template_is_rendered_as_jinja_does(values: dict[str, str]) -> None:
    for prompts in prompt_sets():
        for template in templates(prompts):
            expected = prompts._rendered(template, values).strip()
            assert prompts.render(template, **values) == expected


def test_the_packaged_templates_only_copy() -> None:
    for prompts in prompt_sets():
        for template in templates(prompts):
            prompts.render(template, **dict.fromkeys(NAMES, "x"))
            assert prompts._copied[(template, *NAMES)] is not None


def test_a_template_that_looks_at_its_values_is_rendered_every_time() -> None:
    prompts = load_prompts("paper")
    template = "{% if name == 'Ann' %}Hi {{ name | upper }}{% else %}{{ name[0] }}{% endif %}"
    assert prompts.render(template, name="Ann") == "Hi ANN"
    assert prompts.render(template, name="Bob") == "B"
    truth = "{% if name %}Hi {{ name }}{% endif %}"
    assert prompts.render(truth, name="Ann") == "Hi Ann"
    assert prompts.render(truth, name="") == ""
    assert prompts.render("{{ name | trim }}.", name=" Ann ") == "Ann."


def test_a_value_may_stand_there_twice_or_not_at_all() -> None:
    def render(source: str, values: dict[str, str]) -> str:
        return load_prompts("paper")._rendered(source, values)

    parts = copied_parts(render, "{{ a }}-{{ a }}", ["b", "a"])  # type: ignore[arg-type]
    assert parts == ["", "a", "-", "a", ""]


def test_a_value_that_is_missing_is_still_an_error() -> None:
    prompts = load_prompts("paper")
    for _ in range(2):
        with pytest.raises(ConfigError, match="'task' is undefined"):
            prompts.render("{{ name }} {{ task }}", name="Ann")
