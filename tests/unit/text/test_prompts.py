"""Prompt templates: what they may do, and what is an error."""

import pytest

from stargate.errors import ConfigError
from stargate.text.prompts import load_prompts

PROMPTS = load_prompts("paper")


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("{% if name == 'Ann' %}Hi {{ name | upper }}{% endif %}", "Ann", "Hi ANN"),
        ("{% if name %}Hi {{ name }}{% endif %}", "", ""),
        ("{{ name | trim }}.", " Ann ", "Ann."),
        ("{{ name }}", "{{ task }} <b>", "{{ task }} <b>"),
        ("  {{ name }}-{{ name }}\n", "a", "a-a"),
    ],
)
def test_a_template_is_jinja_and_its_values_are_plain_text(
    template: str, name: str, text: str
) -> None:
    assert PROMPTS.render(template, name=name) == text


def test_a_value_that_is_missing_is_an_error() -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="'task' is undefined"):
            PROMPTS.render("{{ name }} {{ task }}", name="Ann")
