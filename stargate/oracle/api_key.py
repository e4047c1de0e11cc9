"""The API key: read from the environment, shown to nobody."""

import base64
import json
import logging
import os
import re
from typing import NoReturn
from urllib.parse import quote

from stargate.errors import ConfigError
from stargate.text.masking import MASK, Masker

# Shorter "keys" are placeholders such as EMPTY: too likely to be a word of an honest answer to be
# masked there.
_MIN_SECRET_CHARS = 8
# The loggers that see answers before we do (a filter works on one logger, not on those below it).
_LOGGERS = ("httpx2", "openai", "openai._base_client", "openai._response")
# What OpenAI-like servers echo of a key ("sk-ab***xyz"): part of a secret is still a secret.
_PARTIAL_KEY = re.compile(r"\bsk-[A-Za-z0-9_*.\-]{4,}")


class ApiKey:
    """A secret that can be sent and masked, but not printed or pickled."""

    __slots__ = ("_mask", "_mask_answer", "_value", "variable")

    def __init__(self, value: str, variable: str) -> None:
        self.variable = variable
        self._value = value
        spelled = (
            value,
            quote(value, safe=""),
            json.dumps(value)[1:-1],
            base64.b64encode(value.encode()).decode(),
        )
        secrets = [(form, MASK) for form in spelled]
        self._mask = Masker(secrets, min_chars=1)
        is_secret = len(value) >= _MIN_SECRET_CHARS
        self._mask_answer = Masker(secrets if is_secret else (), min_chars=1)

    def __repr__(self) -> str:
        return f"ApiKey(from {self.variable})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not pickled: read it from the environment where it is used")

    def reveal(self) -> str:
        """The key itself, for the Authorization header only."""
        return self._value

    def mask(self, text: str) -> str:
        """`text` of an error, without the key in any spelling and without things that look like
        one.
        """
        return _PARTIAL_KEY.sub(MASK, self._mask(text))

    def mask_body(self, body: bytes) -> bytes:
        """A server's answer without the key, should it echo it there."""
        # The key is ASCII, and Latin-1 gives all other bytes back as they were.
        return self._mask_answer(body.decode("latin-1")).encode("latin-1")

    def occurs_in(self, text: str) -> bool:
        """Whether `text` (a request to send and to keep) carries the key."""
        return self._mask_answer.occurs_in(text)


class LogMask(logging.Filter):
    """Masks a key in what the HTTP packages log: at DEBUG they repeat what a server sent."""

    def __init__(self, key: ApiKey) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._key.mask(record.getMessage()), ()
        return True

    def attach(self) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def detach(self) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)


def read_api_key(variable: str | None) -> ApiKey:
    """The key in the environment variable; a placeholder for servers without keys (`api_key_env:
    null`).

    The placeholder matters: without it the openai package would send OPENAI_API_KEY to whatever
    server is named. Raises ConfigError, which never shows the value.
    """
    if variable is None:
        return ApiKey("none", "no variable")
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"api_key_env: the environment variable {variable} is not set; export it, "
            "or set api_key_env: null for a server without keys"
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(f"api_key_env: {variable} holds characters that no HTTP header may carry")
    return ApiKey(value, variable)
