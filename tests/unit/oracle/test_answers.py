"""From bytes to a status."""

import json
from typing import Any

import pytest

from stargate.config.oracle import REFUSAL_PATTERNS
from stargate.oracle.answers import MalformedReply, classify, parse_reply
from stargate.oracle.records import AnswerStatus, ChatRequest, JsonSchema, Reply, Usage, chat
from tests.fakes.misbehaving_server import completion

REQUEST = ChatRequest(chat(("user", "hi")), "m", max_tokens=50)
WITH_SCHEMA = ChatRequest(chat(("user", "hi")), "m", max_tokens=50, schema=JsonSchema("s", "{}"))
ESTIMATE = Usage(30, 50, estimated=True)
JSON = "application/json"


def status(text: str | None, request: ChatRequest = REQUEST, **fields: str) -> AnswerStatus:
    reply = parse_reply(JSON, completion(text, **fields), ESTIMATE)  # type: ignore[arg-type]
    return classify(reply, request, REFUSAL_PATTERNS)


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("Paris.", {}, AnswerStatus.OK),
        ("Paris.", {"finish_reason": "eos"}, AnswerStatus.OK),
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


def test_reply_is_kept_as_it_was_said() -> None:
    reply = parse_reply("application/json; charset=utf-8", completion(" A\u0000é\n"), ESTIMATE)
    assert reply == Reply(" A\u0000é\n", None, "stop", Usage(100, 20), "fake-1")


def test_half_a_surrogate_becomes_the_replacement_character() -> None:
    assert parse_reply(JSON, completion("a\ud83db😀"), ESTIMATE).text == "a\ufffdb😀"


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": True}]
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
        (JSON, b'{"choices": [{"message": null}]}', "a choice without a message"),
        (JSON, b'{"choices": [{"message": {"content": [1]}}]}', "message.content is not text"),
        (JSON, completion("x", finish_reason=None), "finish_reason 'None'"),
        (JSON, completion("x", finish_reason="abort"), "finish_reason 'abort'"),
    ],
)
def test_malformed_answers(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(MalformedReply, match=message):
        parse_reply(content_type, body, ESTIMATE)
