"""The cache key and the bytes that are sent."""

import hashlib

import pytest

from stargate.errors import DataError
from stargate.oracle.keys import (
    canonical_json,
    canonical_request,
    request_body,
    request_key,
    server_identity,
)
from stargate.oracle.records import ChatRequest, JsonSchema, chat
from stargate.text.chat import Message

REQUEST = ChatRequest(chat(("system", "Be brief."), ("user", "Grüße?")), "m", max_tokens=5)


def key(request: ChatRequest, server: str = "http://h/v1", **extra: object) -> str:
    body = canonical_json(request_body(request, extra=extra))
    return request_key(canonical_request(server, body), request.where).hex()


def with_fields(**fields: object) -> ChatRequest:
    given = {"messages": REQUEST.messages, "model": "m", "max_tokens": 5, **fields}
    return ChatRequest(**given)  # type: ignore[arg-type]


def test_canonical_text_is_literal() -> None:
    body = canonical_json(request_body(REQUEST))
    assert body == (
        '{"max_tokens":5,"messages":[{"content":"Be brief.","role":"system"},'
        '{"content":"Grüße?","role":"user"}],"model":"m","temperature":0.0}'
    )
    whole = canonical_request("http://h/v1", body)
    assert whole == '{"body":' + body + ',"format":1,"server":"http://h/v1"}'
    assert key(REQUEST) == hashlib.sha256(whole.encode()).hexdigest()
    # Stored answers must be found again by later versions: this number never changes silently.
    assert key(REQUEST) == "7beda473b4a33030912912ac446345d85c3608b37e755fe0190339ca7a133def"


def test_body_with_everything() -> None:
    request = with_fields(
        top_p=1,
        seed=7,
        stop=("\n", "END"),
        temperature=1,
        schema=JsonSchema.of("person", {"type": "object", "required": ["name"]}),
    )
    assert request_body(request, "max_completion_tokens", {"min_p": 0.1}) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Grüße?"},
        ],
        "max_completion_tokens": 5,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 7,
        "stop": ["\n", "END"],
        "min_p": 0.1,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "person",
                "strict": True,
                "schema": {"type": "object", "required": ["name"]},
            },
        },
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m2"},
        {"temperature": None},
        {"max_tokens": 6},
        {"temperature": 0.1},
        {"top_p": 1.0},
        {"seed": 0},
        {"stop": ("x",)},
        {"schema": JsonSchema("s", "{}")},
        {"messages": chat(("user", "Grüße?"))},
        {"messages": chat(("system", "Be brief."), ("user", "Grüße? "))},
        {"messages": chat(("user", "Be brief."), ("user", "Grüße?"))},
    ],
)
def test_every_parameter_is_part_of_the_key(fields: dict[str, object]) -> None:
    assert key(with_fields(**fields)) != key(REQUEST)


def test_server_and_extra_body_are_part_of_the_key() -> None:
    keys = {key(REQUEST), key(REQUEST, "http://h2/v1"), key(REQUEST, min_p=0.1), key(REQUEST, k=1)}
    assert len(keys) == 4


def test_names_and_number_spelling_are_not_part_of_the_key() -> None:
    assert key(with_fields(purpose="gold", record="t1:p1")) == key(REQUEST)
    assert key(with_fields(temperature=0)) == key(REQUEST)
    assert key(with_fields(temperature=-0.0)) == key(REQUEST)
    schemas = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
    assert len({key(with_fields(schema=JsonSchema.of("s", schema))) for schema in schemas}) == 1


def test_half_a_surrogate_is_one_clear_line() -> None:
    request = with_fields(messages=chat(("user", "\ud83d")), purpose="gold", record="t1:p1")
    with pytest.raises(DataError, match="gold t1:p1: the messages hold half a surrogate pair"):
        key(request)


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("HTTPS://Api.OpenAI.com:443/v1/", "https://api.openai.com/v1"),
        ("http://user:secret@h:80/V1", "http://h/V1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_server_identity(url: str, identity: str) -> None:
    assert server_identity(url) == identity


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": ()}, "messages must not be empty"),
        ({"model": ""}, "model must be named"),
        ({"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ({"temperature": float("nan")}, "temperature must be >= 0, got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"messages": (Message("user", "x", token_ids=(1,)),)}, "messages must be plain text"),
    ],
)
def test_bad_requests_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_fields(**fields)
