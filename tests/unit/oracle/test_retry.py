"""Retry-After, back-off, and what each HTTP status means."""

import json
import random
from datetime import UTC, datetime

import pytest

from stargate.oracle.api_key import ApiKey
from stargate.oracle.client import backoff_seconds
from stargate.oracle.failures import (
    Failure,
    FailureKind,
    failure_of_status,
    parse_retry_after,
    status_of,
)
from stargate.oracle.records import AnswerStatus

NOW = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)
KEY = ApiKey("planted-key-0123456789", "TEST_KEY")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "20", "retry-after": "3"}, 0.02),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 09:28:30 +0200"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e300"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 99999999999999999999 Dec 2026 00:00:00 GMT"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after(headers, NOW) == seconds


def test_backoff_is_full_jitter() -> None:
    rng = random.Random(0)
    for failures, ceiling in ((1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (5000, 3.0)):
        waits = [backoff_seconds(failures, 0.5, 3.0, rng) for _ in range(2000)]
        assert 0 <= min(waits) < 0.05 * ceiling
        assert 0.95 * ceiling < max(waits) <= ceiling
        assert sum(waits) / 2000 == pytest.approx(ceiling / 2, rel=0.1)


def failure(code: int, error: object = None, **headers: str) -> Failure:
    body = error if isinstance(error, bytes) else json.dumps({"error": error}).encode()
    return failure_of_status(code, headers, body, NOW, KEY)


@pytest.mark.parametrize(
    ("code", "error", "kind"),
    [
        (429, {"message": "slow down"}, FailureKind.RATE_LIMIT),
        (429, {"message": "pay", "code": "insufficient_quota"}, FailureKind.REJECTED),
        (429, {"message": "pay", "type": "insufficient_quota"}, FailureKind.REJECTED),
        (408, None, FailureKind.SERVER),
        (409, None, FailureKind.SERVER),
        (500, b"\xff\xfe", FailureKind.SERVER),
        (503, b"<html>", FailureKind.SERVER),
        (529, None, FailureKind.SERVER),
        (301, None, FailureKind.REJECTED),
        (400, {"message": "bad"}, FailureKind.REJECTED),
        (401, {"message": "who"}, FailureKind.REJECTED),
        (403, "no", FailureKind.REJECTED),
        (404, b"[]", FailureKind.REJECTED),
        (422, None, FailureKind.REJECTED),
    ],
)
def test_kinds(code: int, error: object, kind: FailureKind) -> None:
    found = failure(code, error)
    assert (found.kind, found.status) == (kind, AnswerStatus.FAILED)
    assert found.may_pass is (kind is not FailureKind.REJECTED)
    assert found.may_be_billed is False
    assert found.detail.startswith(f"HTTP {code}")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"error": {"message": "no credit", "code": 402}}', 402),
        (b'{"error": {"message": "slow down", "code": 429}}', 429),
        (b'{"error": {"message": "oops", "code": "oops"}}', 200),
        (b'{"error": {"message": "oops", "code": 200}}', 200),
        (b'{"choices": [{"message": {"content": "an \\"error\\""}}], "code": 402}', 200),
        (b'{"choices": [], "error": null, "code": 402}', 200),
        (b'not "error" JSON', 200),
    ],
)
def test_an_error_in_a_200_has_its_own_status(body: bytes, status: int) -> None:
    assert status_of(200, body) == status
    assert status_of(503, body) == 503


def test_what_is_wrong_with_one_request_only() -> None:
    azure = failure(400, {"message": "content management policy", "code": "content_filter"})
    assert (azure.kind, azure.status) == (FailureKind.REJECTED, AnswerStatus.FILTERED)
    openai = failure(400, {"message": "too many", "code": "context_length_exceeded"})
    vllm = failure(
        400, {"message": "This model's maximum context length is 2048 tokens.", "code": 400}
    )
    assert {openai.status, vllm.status} == {AnswerStatus.TOO_LONG}


def test_detail_is_one_short_line_without_secrets() -> None:
    said = "Incorrect key\nplanted-key-0123456789 \x1b[31m or sk-abc***xyz" + "!" * 1000
    found = failure(401, {"message": said}, **{"retry-after": "7"})
    assert found.detail.startswith("HTTP 401: Incorrect key [key]  [31m or [key]!!!")
    assert len(found.detail) == 240
    assert found.retry_after == 7.0
