"""Which templates may be put together from pieces, and which tokenizers encode words one by one."""

from typing import Any

import pytest

from stargate.text.pieces import words_stand_alone
from stargate.text.skeleton import LookedAtError, Unseen, is_harmless


@pytest.mark.parametrize(
    "source",
    [
        "{{ m.content | tojson }}",
        "{{ m.content | replace('a', 'b') }}",
        "{{ m.content ~ 'x' }}",
        "{{ '%s' % m.content }}",
        "{{ '{}'.format(m.content) }}",
        "{{ 'abc'.startswith(m.content) }}",
        "{% if m.content in 'abc' %}x{% endif %}",
        "{% set x %}{{ m.content }}{% endset %}{{ x[:1] }}",
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content)[:1] }}",
        "{% filter upper %}{{ m.content }}{% endfilter %}",
        "{{ strftime_now('%d') }}",
        "{% if m.content is sequence %}x{% endif %}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
    ],
)
def test_what_could_look_behind_a_values_back_is_not_trusted(source: str) -> None:
    assert not is_harmless(source)


@pytest.mark.parametrize(
    "expression",
    [
        *("value[0]", "value[:3]", "value | length", "value == 'a'", "'a' == value", "value < 'b'"),
        *("'a' in value", "value.split()", "value.strip('a')", "(value + ' ').strip()"),
        *("(' ' + value) | trim", "value.upper()", "value % 3", "value.foo", "value['foo']"),
    ],
)
def test_whoever_looks_at_an_unseen_value_is_told_so(expression: str) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment().from_string(
        "{% if " + expression + " %}x{% endif %}{{ " + expression + " }}"
    )
    with pytest.raises(LookedAtError):
        template.render(value=Unseen(0))


def test_an_unseen_value_can_be_copied() -> None:
    assert str("a" + Unseen(0) + "b") == "a\ue0000\ue001b"
    assert str(Unseen(1).strip()) == "\ue0001\ue001"
    assert bool(Unseen(0))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
SMOL: dict[str, Any] = {
    "model": {"type": "BPE", "dropout": None},
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, BYTE_LEVEL]},
    "added_tokens": [{"content": "<e>", "single_word": False}],
}


def test_words_stand_alone_only_where_that_is_known() -> None:
    assert words_stand_alone(SMOL)
    assert words_stand_alone(SMOL | {"pre_tokenizer": BYTE_LEVEL})
    for other in (
        {"model": {"type": "Unigram"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated"}},
        {"added_tokens": [{"content": "a b", "single_word": False}]},
        {"added_tokens": [{"content": "a", "single_word": False, "rstrip": True}]},
    ):
        assert not words_stand_alone(SMOL | other), other
