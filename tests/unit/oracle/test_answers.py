"""From bytes to a status."""

import json
from typing import Any

import pytest

from stargate.config.oracle import REFUSAL_PATTERNS
from stargate.oracle.answers import MalformedReply, classify, explain, parse_reply
from stargate.oracle.records import AnswerStatus, ChatRequest, JsonSchema, Reply, Usage, chat
from tests.fakes.misbehaving_server import completion

REQUEST = ChatRequest(chat(("user", "hi")), "m", max_tokens=50)
WITH_SCHEMA = ChatRequest(chat(("user", "hi")), "m", max_tokens=50, schema=JsonSchema("s", "{}"))
ESTIMATE = Usage(30, 50, estimated=True)
JSON = "application/json"


def status(text: str | None, request: ChatRequest = REQUEST, **fields: str) -> AnswerStatus:
    return heard(completion(text, **fields), request)[0]  # type: ignore[arg-type]


def heard(body: bytes, request: ChatRequest = REQUEST) -> tuple[AnswerStatus, str]:
    return classify(parse_reply(JSON, body, ESTIMATE), request, REFUSAL_PATTERNS)


def with_content(content: object) -> bytes:
    tree = json.loads(completion(""))
    tree["choices"][0]["message"]["content"] = content
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("Paris.", {}, AnswerStatus.OK),
        ("Paris.", {"finish_reason": "eos"}, AnswerStatus.OK),
        ("Paris.", {"finish_reason": "eos_token"}, AnswerStatus.OK),
        ("Paris.", {"finish_reason": "STOP"}, AnswerStatus.OK),
        ("Paris.", {"finish_reason": "COMPLETE"}, AnswerStatus.OK),
        ("Paris is", {"finish_reason": "MAX_TOKENS"}, AnswerStatus.CUT_OFF),
        ("Paris is", {"finish_reason": "model_length"}, AnswerStatus.CUT_OFF),
        ("Paris", {"finish_reason": "SAFETY"}, AnswerStatus.FILTERED),
        ("Paris", {"finish_reason": "who_knows"}, AnswerStatus.MALFORMED),
        ("Paris", {"finish_reason": None}, AnswerStatus.MALFORMED),
        ("<think>Where?</think>Paris.", {}, AnswerStatus.OK),
        ("<think>Where?</think>", {}, AnswerStatus.EMPTY),
        ("<think>Where?", {}, AnswerStatus.CUT_OFF),
        ("<think>Hm.</think>Sorry, I can't help with it.", {}, AnswerStatus.REFUSED),
        ("Paris is", {"finish_reason": "length"}, AnswerStatus.CUT_OFF),
        ("", {"finish_reason": "length"}, AnswerStatus.CUT_OFF),
        ("", {}, AnswerStatus.EMPTY),
        (None, {}, AnswerStatus.EMPTY),
        (" \n\t ", {}, AnswerStatus.EMPTY),
        (None, {"refusal": "I won't."}, AnswerStatus.REFUSED),
        ("x", {"refusal": "I won't.", "finish_reason": "length"}, AnswerStatus.REFUSED),
        ("x", {"finish_reason": "refusal"}, AnswerStatus.REFUSED),
        ("half", {"finish_reason": "content_filter"}, AnswerStatus.FILTERED),
    ],
)
def test_statuses(text: str | None, fields: dict[str, Any], expected: AnswerStatus) -> None:
    assert status(text, **fields) is expected


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot assist with this request.",
        "I am sorry, but I am not able to create that.",
        "Sorry, I can't do that.",
        "Unfortunately, I am unable to provide medical advice.",
        "I cannot provide instructions for that.",
        "I'm unable to help with that.",
        "I won't write this.",
        "As an AI language model, I do not have preferences.",
    ],
)
def test_refusals_in_words(text: str) -> None:
    assert status(text) is AnswerStatus.REFUSED


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear about your loss. Start with a short walk each day.",
        "You can't go wrong with a simple pasta dish.",
        "I can see that you like hiking, so try the Alps.",
        "Sorry is the hardest word, so begin your letter with it.",
        "Unfortunately, trains are slow there; take a bus.",
        "I can't help with that. " + "But here is a long plan. " * 30,
    ],
)
def test_honest_answers_are_not_refusals(text: str) -> None:
    assert status(text) is AnswerStatus.OK


def test_json_is_checked_where_it_was_asked_for() -> None:
    assert status('{"name": "Ada"}', WITH_SCHEMA) is AnswerStatus.OK
    assert status('{"name": "Ada', WITH_SCHEMA) is AnswerStatus.INVALID
    assert status("Here it is: {}", WITH_SCHEMA) is AnswerStatus.INVALID
    assert status("[" * 100_000, WITH_SCHEMA) is AnswerStatus.INVALID
    assert status("not json") is AnswerStatus.OK


def test_reasoning_is_taken_off_before_an_answer_is_judged() -> None:
    assert heard(completion("<think>Who?</think>\nDear Ann")) == (AnswerStatus.OK, "Dear Ann")
    assert heard(completion("Dear Ann<|im_end|>")) == (AnswerStatus.OK, "Dear Ann")
    found = heard(completion('<think>{"a": 1}</think>{"winner": "A"}'), WITH_SCHEMA)
    assert found == (AnswerStatus.OK, '{"winner": "A"}')
    assert heard(completion("<think>She")) == (AnswerStatus.CUT_OFF, "<think>She")


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Dear "}, {"type": "text", "text": "Ann"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Who?"}]}, "Dear Ann"],
        [{"type": "reasoning", "text": "Who?"}, {"type": "output_text", "text": "Dear Ann"}],
    ],
)
def test_the_text_of_several_parts_is_joined(content: object) -> None:
    assert heard(with_content(content)) == (AnswerStatus.OK, "Dear Ann")
    assert heard(with_content([{"type": "thinking", "thinking": "Who?"}]))[0] is AnswerStatus.EMPTY


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (with_content([1]), "unreadable: message.content is not text"),
        (with_content({"text": "x"}), "unreadable: message.content is not text"),
        (with_content([{"type": "text"}]), "unreadable: message.content is not text"),
        (b'{"choices": [{"message": null}]}', "unreadable: a choice without a message"),
        (b'{"choices": ["x"]}', "unreadable: a choice without a message"),
        (
            completion("x", finish_reason="Who\nKnows"),
            "finish_reason 'who\\nknows' does not say whether the answer is whole",
        ),
    ],
)
def test_an_answer_that_came_is_a_reply_whatever_is_in_it(body: bytes, why: str) -> None:
    reply = parse_reply(JSON, body, ESTIMATE)
    status, _ = classify(reply, REQUEST, REFUSAL_PATTERNS)
    assert (status, explain(status, reply, REQUEST)) == (AnswerStatus.MALFORMED, why)


@pytest.mark.parametrize(
    ("text", "finish_reason", "why"),
    [
        ("Dear", "length", "max_tokens = 50 was reached"),
        ("<think>Dear", "length", "max_tokens = 50 was reached while it reasoned"),
        ("<think>Dear", "stop", "its reasoning never ends"),
    ],
)
def test_why_an_answer_is_cut_off(text: str, finish_reason: str, why: str) -> None:
    reply = parse_reply(JSON, completion(text, finish_reason), ESTIMATE)
    assert explain(AnswerStatus.CUT_OFF, reply, REQUEST) == why


def test_reply_is_kept_as_it_was_said() -> None:
    reply = parse_reply("application/json; charset=utf-8", completion(" A\u0000é\n"), ESTIMATE)
    assert reply == Reply(" A\u0000é\n", None, "stop", Usage(100, 20), "fake-1")


def test_half_a_surrogate_becomes_the_replacement_character() -> None:
    assert parse_reply(JSON, completion("a\ud83db😀"), ESTIMATE).text == "a\ufffdb😀"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 3},
        {"prompt_tokens": -1, "completion_tokens": True},
        {"prompt_tokens": 10**30, "completion_tokens": 3},  # no meter holds it
    ],
)
def test_missing_usage_is_estimated_and_says_so(usage: object) -> None:
    tree = json.loads(completion("x" * 41))
    tree["usage"] = usage
    reply = parse_reply(JSON, json.dumps(tree).encode(), ESTIMATE)
    assert reply.usage == Usage(30, 11, estimated=True)


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("text/html", completion("x"), "content type 'text/html'"),
        ("", completion("x"), "content type ''"),
        (JSON, completion("x")[:-5], "bytes that are not JSON"),
        (JSON, b"", "0 bytes that are not JSON"),
        (JSON, b"\xff\xfe{}", "bytes that are not JSON"),
        (JSON, b"[]", "a JSON list"),
        (JSON, b'{"choices": []}', "no choices"),
        (JSON, b'{"error": {"message": "overloaded"}}', "an error object"),
        (JSON, completion("x", finish_reason="abort"), "finish_reason 'abort'"),
        (JSON, completion("x", finish_reason="error"), "finish_reason 'error'"),
    ],
)
def test_malformed_answers(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(MalformedReply, match=message):
        parse_reply(content_type, body, ESTIMATE)
