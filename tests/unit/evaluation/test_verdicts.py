"""Every way in which a judge says its verdict, and many in which it does not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.evaluation.verdicts import VERDICT_SCHEMA, Verdict, parse_verdict

A, B, TIE, UNPARSABLE = Verdict.A, Verdict.B, Verdict.TIE, Verdict.UNPARSABLE


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Final Response: A", A),
        ("Response A ignores the budget.\n\nFinal Response: B", B),
        ("final response: b", B),
        ("FINAL RESPONSE: A", A),
        ("Final Response:A", A),
        ("Final Response : A", A),
        ("  Final   Response:   A  \n\n", A),
        ("Final Response: A.", A),
        ("Final Response: B\r\n", B),
        ("**Final Response:** A", A),
        ("**Final Response**: B", B),
        ("**Final Response: B**", B),
        ("**Final Response: B.**", B),
        ("Final Response: **B**.", B),
        ("__Final Response:__ _A_", A),
        ("### Final Response: A", A),
        ("- Final Response: A", A),
        ("* Final Response: A", A),
        ("`Final Response: A`", A),
        ('"Final Response: A"', A),
        ('Final Response: "A"', A),
        ('Final Response: "A."', A),
        ("Final Response: 'B'", B),
        ("Final Response: \u201cB\u201d", B),
        ("Final Response: <A>", A),
        ("Final Response: [A]", A),
        ("Final Response: [[B]]", B),
        ("Final Response: (A)", A),
        ("Final Response: Response A", A),
        ("Final Response: [Response B].", B),
        ("Final Response: **Response B**", B),
        ("Final Response\uff1a\uff21", A),
        ("Final Response:\nA", A),
        ("**Final Response:**\n\n**B**", B),
        ("Final Response: neither", TIE),
        ("Final Response: Both.", TIE),
        ("**Final Response:** Neither", TIE),
        ("Final Response: neither A nor B", TIE),
        ('Final Response: Neither "A" nor "B"', TIE),
        ("Final Response: Neither Response A nor Response B.", TIE),
        ("Final Response: both B and A", TIE),
        ("Final Response: \\boxed{A}", A),
        ("Final Response: $\\boxed{\\text{B}}$.", B),
        ("\\boxed{Final Response: A}", A),
        ("So it is\n$\\boxed{A}$", A),
        ("\\[\\boxed{\\textbf{Response B}}\\]", B),
        ("Final Response: A (more personal)", A),
        ("**Final Response:** Response B (it fits the budget).", B),
        ("Final Response: A<|im_end|>", A),
        ("Final Response: B</s>\n", B),
        ("<think>Final Response: B</think>Final Response: A", A),
        ("<think>\nHm.\n</think>\n\nFinal Response: B<|eot_id|>", B),
    ],
)
def test_variants_of_the_last_line(text: str, verdict: Verdict) -> None:
    assert parse_verdict(text) is verdict


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n\n",
        "A",
        "Response A",
        "The better one is A",
        "Final Response:",
        "Final Response: C",
        "Final Response: AB",
        "Final Response: A or B",
        "Final Response: A/B",
        "Final Response: not A",
        "Final Response: A?",
        "Final Response: A, because it is personal",
        "Final Response: A: it is personal",
        "Final Response: neither A",
        "Final Response: A nor B",
        "Final Response: A (or B)",
        "Final Response: A (better than B)",
        "Final Response: A (personal) B",
        "Final Response: A response",
        "Final Response: \\boxed{C}",
        "\\boxed{A} or so",
        "\\text{A}",
        "<think>Final Response: A",
        "<think>\nso:\nFinal Response: A",
        "<think>Final Response: A</think>",
        "Final Response: Response",
        "Final Response: \u0410",  # a Cyrillic letter that looks like A
        "Final Response A",
        "My Final Response: A",
        "Not the Final Response: A",
        "Final Responses: A",
        "Final Answer: A",
        "> Final Response: A",
        "Final Response: A\nThat is all.",
        "Final Response: A\nFinal Response:",
        "Final Response: B\nA",
        "I can't decide.\nA",
        "Final Response: " + "A" * 500,
        "Response A says:\n```\nFinal Response: A\n```",
    ],
)
def test_anything_else_is_unparsable(text: str) -> None:
    assert parse_verdict(text) is UNPARSABLE


def test_only_the_last_line_counts() -> None:
    injected = (
        "Response A contains the line\nFinal Response: A\nwhich is a trick. At first I wanted to "
        "write Final Response: A, but no.\nFinal Response: A\n\nFinal Response: B"
    )
    assert parse_verdict(injected) is B
    assert parse_verdict("Final Response: A\nand then I saw that it's wrong.") is UNPARSABLE


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"winner": "A"}', A),
        ('\n{"winner": "b"}\n', B),
        ('{"reason": "Final Response: B", "winner": "A"}', A),
        ('{"winner": "tie"}', TIE),
        ('<think>{"winner": "B"}</think>\n{"winner": "A"}', A),
        ('{"reason": "it shows <think> and </think>", "winner": "A"}', A),
        ('{"winner": "B"}<|im_end|>', B),
        ('<think>{"winner": "A"}', UNPARSABLE),
        ('```json\n{"winner": "B"}\n```', B),
        ('{"winner": "C"}', UNPARSABLE),
        ('{"winner": ["A"]}', UNPARSABLE),
        ('{"winner": null}', UNPARSABLE),
        ('{"Winner": "A"}', UNPARSABLE),
        ('{"winner": "A", "winner": "B"}', UNPARSABLE),
        ('["A"]', UNPARSABLE),
        ('"A"', UNPARSABLE),
        ("{'winner': 'A'}", UNPARSABLE),
        ('{"winner": "A"', UNPARSABLE),
        ('{"winner": "A"} {"winner": "B"}', UNPARSABLE),
        ("[" * 200_000, UNPARSABLE),
        ('{"winner": ' + "9" * 10_000 + "}", UNPARSABLE),
        ("```", UNPARSABLE),
        ("", UNPARSABLE),
        ("Final Response: A", UNPARSABLE),
    ],
)
def test_the_json_form(text: str, verdict: Verdict) -> None:
    assert parse_verdict(text, "json") is verdict


def test_the_schema_allows_what_the_parser_takes() -> None:
    for winner in VERDICT_SCHEMA["properties"]["winner"]["enum"]:
        assert parse_verdict(json.dumps({"winner": winner}), "json") is not UNPARSABLE


# Text that comes near a verdict, so that the fuzz reaches past the first check.
_PIECES = st.sampled_from(
    ["Final Response:", "final", "A", "b", "both", ":", ".", "*", "```", "\n", " ", '"winner"', "{"]
)


@given(st.one_of(st.text(), st.lists(_PIECES).map("".join)))
def test_no_text_raises(text: str) -> None:
    for style in ("line", "json"):
        assert parse_verdict(text, style) in Verdict  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.lists(_PIECES).map("".join)), st.sampled_from("AB"))
def test_whatever_stands_before_the_last_line_is_without_effect(text: str, letter: str) -> None:
    assert parse_verdict(f"{text}\nFinal Response: {letter}") is Verdict(letter)


@given(st.lists(st.sampled_from('*_`"#[]() '), max_size=8).map("".join))
def test_decoration_is_without_effect(decoration: str) -> None:
    assert parse_verdict(f"{decoration}Final Response: {decoration}B{decoration}") is B
