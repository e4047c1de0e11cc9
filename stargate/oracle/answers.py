"""From a server's bytes to a Reply, and from a Reply to what it is worth.

    body -> parse_reply -> Reply (kept as it is) -> classify -> AnswerStatus

The status is judged whenever a reply is read, not when it is stored: better refusal patterns also
work on old answers.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

from stargate.oracle.records import AnswerStatus, ChatRequest, Reply, Usage

# The words that servers use for the four ways to end. Anything else ("abort", "error", null) is no
# complete answer.
FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "refusal": "refusal",
}
# A refusal in words is short; a long text that happens to begin like one has gone on to help.
MAX_REFUSAL_CHARS = 400


class MalformedReply(Exception):
    """The body is not a chat completion. The message says how, without quoting the body."""


def parse_reply(content_type: str, body: bytes, estimate: Usage) -> Reply:
    """Reads a 200 answer. `estimate` stands in where the server reports no usage. Raises
    MalformedReply.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise MalformedReply(f"content type {media[:60]!r} instead of application/json")
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedReply(f"{len(body)} bytes that are not JSON") from None
    choice = _first_choice(tree)
    message = choice["message"]
    text, refusal = message.get("content"), message.get("refusal")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise MalformedReply("message.content is not text")
    finish = FINISH_REASONS.get(str(choice.get("finish_reason")))
    if finish is None:
        raise MalformedReply(f"finish_reason {str(choice.get('finish_reason'))[:40]!r}")
    return Reply(
        text=_unicode(text or ""),
        refusal=_unicode(refusal) if refusal else None,
        finish_reason=finish,
        usage=_usage(tree.get("usage"), text or "", estimate),
        model=_unicode(str(tree.get("model", ""))),
    )


def classify(reply: Reply, request: ChatRequest, refusals: Sequence[str]) -> AnswerStatus:
    """What a reply is worth, the strongest objection first. `refusals` are regular expressions."""
    text = reply.text.strip()
    if reply.refusal or reply.finish_reason == "refusal":
        return AnswerStatus.REFUSED
    if reply.finish_reason == "content_filter":
        return AnswerStatus.FILTERED
    if reply.finish_reason == "length":
        return AnswerStatus.CUT_OFF
    if not text:
        return AnswerStatus.EMPTY
    if len(text) <= MAX_REFUSAL_CHARS:
        plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        if any(re.match(pattern, plain, re.DOTALL) for pattern in refusals):
            return AnswerStatus.REFUSED
    if request.schema is not None and not _is_json(text):
        return AnswerStatus.INVALID
    return AnswerStatus.OK


def _first_choice(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise MalformedReply(f"a JSON {type(tree).__name__} instead of an object")
    choices = tree.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReply("an error object" if "error" in tree else "no choices")
    choice = choices[0]
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise MalformedReply("a choice without a message")
    return choice


def _usage(usage: Any, text: str, estimate: Usage) -> Usage:
    """The reported usage; without one, the estimated prompt and the text's own length."""
    if isinstance(usage, dict):
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if _is_count(prompt) and _is_count(completion):
            return Usage(prompt, completion)
    # Never below what was said: about 4 bytes are a token, and the limit is at most
    # estimate.completion_tokens.
    said = min(estimate.completion_tokens, -(-len(text.encode("utf-8", "replace")) // 4))
    return Usage(estimate.prompt_tokens, said, estimated=True)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no file can hold: U+FFFD takes its place."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
