"""The cache key: SHA-256 of the whole request in one canonical spelling.

    ChatRequest + server -> body (what is sent) -> canonical JSON -> key

The bytes that are sent are part of the canonical text as they are, so nothing that could change an
answer is left out; `purpose` and `record`, which could not, are left out. The server's identity is
its address without credentials.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from stargate.errors import DataError
from stargate.oracle.records import ChatRequest

# Raise it when the meaning of stored answers changes: old answers are then asked for again.
FORMAT = 1
_DEFAULT_PORTS = {"http": 80, "https": 443}


def server_identity(url: str) -> str:
    """The address in one spelling: "HTTPS://Api.X.com:443/v1/" -> "https://api.x.com/v1"."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    host = (parts.hostname or "").lower()
    if ":" in host:
        host = f"[{host}]"
    if parts.port is not None and parts.port != _DEFAULT_PORTS.get(scheme):
        host = f"{host}:{parts.port}"
    return urlunsplit((scheme, host, parts.path.rstrip("/"), "", ""))


def request_body(
    request: ChatRequest,
    max_tokens_parameter: str = "max_tokens",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a chat completion: what was given and no more, numbers in one spelling."""
    body: dict[str, Any] = dict(extra or {})
    body["model"] = request.model
    body["messages"] = [
        {"role": message.role, "content": message.text} for message in request.messages
    ]
    body[max_tokens_parameter] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = float(request.temperature) + 0.0  # 0, 0.0 and -0.0 are one request
    if request.top_p is not None:
        body["top_p"] = float(request.top_p)
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": request.schema.name,
                "schema": json.loads(request.schema.text),
                "strict": True,
            },
        }
    return body


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, text as it is."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def canonical_request(server: str, body: str) -> str:
    """Canonical JSON of a whole request around the canonical JSON of its body."""
    return f'{{"body":{body},"format":{FORMAT},"server":{canonical_json(server)}}}'


def request_key(canonical: str, where: str) -> bytes:
    """The 32 bytes that name a request. Raises DataError for text that is not Unicode."""
    try:
        return hashlib.sha256(canonical.encode()).digest()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: the messages hold half a surrogate pair; clean the text"
        ) from None
