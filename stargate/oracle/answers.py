"""From a server's bytes to a Reply, and from a Reply to what it is worth.

    body -> parse_reply -> Reply (kept as it is) -> classify -> AnswerStatus, what it says

The status is judged whenever a reply is read, not when it is stored: better refusal patterns, or a
server's word that we did not know, also work on old answers.

An answer that came is paid, so it becomes a Reply whatever is in it, and is never bought again: the
same server would say it in the same way. Only where no answer came (half a JSON, an error object,
a generation that the server broke off) asking again makes sense.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

from stargate.oracle.records import AnswerStatus, ChatRequest, Reply, Usage
from stargate.text.reasoning import spoken_part

# The words that servers use for the four ways to end, in lower case: OpenAI's own, those of vLLM,
# TGI, Anthropic, Gemini, Mistral, Cohere and their proxies. No other is a complete answer.
FINISH_REASONS = {
    word: end
    for end, words in {
        "stop": "stop eos eos_token stop_token stop_sequence end_turn end_of_turn complete "
        "completed finished tool_calls tool_use function_call",
        "length": "length max_tokens max_length max_output_tokens model_length token_limit "
        "model_context_window_exceeded repetition",
        "content_filter": "content_filter content_filtered safety recitation blocklist spii "
        "prohibited_content image_safety error_toxic",
        "refusal": "refusal",
    }.items()
    for word in words.split()
}
# The server broke the generation off.
_BROKEN_OFF = (
    *("abort", "aborted", "cancelled", "canceled", "error", "interrupted", "timeout"),
    "insufficient_system_resource",
)
# Before why, in place of a finish_reason: an answer in which nothing can be read.
_UNREADABLE = "unreadable: "
_MAX_WORD_CHARS = 40
_MAX_TOKENS = 10**9  # of one answer
# A refusal in words is short; a long text that happens to begin like one has gone on to help.
MAX_REFUSAL_CHARS = 400
_TEXT_PARTS = ("text", "output_text")


class MalformedReply(Exception):
    """The body holds no answer. The message says how, without quoting the body."""


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
    text, refusal, finish = _read(_first_choice(tree))
    if finish in _BROKEN_OFF:
        raise MalformedReply(f"finish_reason {finish!r}")
    return Reply(
        text=_unicode(text),
        refusal=_unicode(refusal) if refusal else None,
        finish_reason=_unicode(finish),
        usage=_usage(tree.get("usage"), text, estimate),
        model=_unicode(str(tree.get("model", ""))),
    )


def classify(
    reply: Reply, request: ChatRequest, refusals: Sequence[str]
) -> tuple[AnswerStatus, str]:
    """What a reply is worth, the strongest objection first, and what it says without its reasoning:
    all of its text where that never ends. `refusals` are regular expressions.
    """
    said = spoken_part(reply.text)
    text = reply.text if said is None else said
    return _status(reply, said, request, refusals), text


def _status(
    reply: Reply, said: str | None, request: ChatRequest, refusals: Sequence[str]
) -> AnswerStatus:
    end = FINISH_REASONS.get(reply.finish_reason)
    if reply.refusal or end == "refusal":
        return AnswerStatus.REFUSED
    if end is None:
        return AnswerStatus.MALFORMED
    if end == "content_filter":
        return AnswerStatus.FILTERED
    if end == "length" or said is None:
        return AnswerStatus.CUT_OFF
    text = said.strip()
    if not text:
        return AnswerStatus.EMPTY
    if len(text) <= MAX_REFUSAL_CHARS:
        plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        if any(re.match(pattern, plain, re.DOTALL) for pattern in refusals):
            return AnswerStatus.REFUSED
    if request.schema is not None and not _is_json(text):
        return AnswerStatus.INVALID
    return AnswerStatus.OK


def explain(status: AnswerStatus, reply: Reply, request: ChatRequest) -> str:
    """One line on why an answer is not OK, with its beginning where that helps."""
    said = " ".join((reply.refusal or reply.text).split())
    excerpt = f": {said[:120]!r}" if said else ""
    end = reply.finish_reason
    cut_off = f"max_tokens = {request.max_tokens} was reached"
    if spoken_part(reply.text) is None:
        cut_off = "its reasoning never ends" if _ended(reply) else f"{cut_off} while it reasoned"
    return {
        AnswerStatus.REFUSED: f"the model declined{excerpt}",
        AnswerStatus.FILTERED: "a content filter stopped the answer",
        AnswerStatus.CUT_OFF: cut_off,
        AnswerStatus.EMPTY: "the model said nothing",
        AnswerStatus.INVALID: f"JSON was asked for, got{excerpt}",
        AnswerStatus.MALFORMED: end
        if end.startswith(_UNREADABLE)
        else f"finish_reason {end!r} does not say whether the answer is whole",
    }.get(status, "")


def _ended(reply: Reply) -> bool:
    return FINISH_REASONS.get(reply.finish_reason) == "stop"


def _first_choice(tree: Any) -> Any:
    if not isinstance(tree, dict):
        raise MalformedReply(f"a JSON {type(tree).__name__} instead of an object")
    choices = tree.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReply("an error object" if "error" in tree else "no choices")
    return choices[0]


def _read(choice: Any) -> tuple[str, str | None, str]:
    """Text, refusal and finish_reason of a choice."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return "", None, f"{_UNREADABLE}a choice without a message"
    text, refusal = _joined(message.get("content")), message.get("refusal")
    if text is None or not isinstance(refusal, str | None):
        return "", None, f"{_UNREADABLE}message.content is not text"
    return text, refusal, str(choice.get("finish_reason")).lower()[:_MAX_WORD_CHARS]


def _joined(content: Any) -> str | None:
    """The text of a message: one string, none, or the text among its parts (the others hold
    reasoning). None if it is none of them.
    """
    if not isinstance(content, list):
        return content or "" if isinstance(content, str | None) else None
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") not in _TEXT_PARTS:
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


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
    """Whether it is a number of tokens that an answer can have; the meter's sums hold those."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no file can hold: U+FFFD takes its place."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
