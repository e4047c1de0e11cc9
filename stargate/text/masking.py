"""Secrets kept out of what is shown or stored: API keys, credentials of storages, values of --env,
passwords in addresses.
"""

import re
from collections.abc import Iterable, Mapping

MASK = "[key]"
_USER_INFO = re.compile(r"://[^/@\s]*@")


# Names under which programs keep what nobody else may see, and values that hold it whatever their
# name (AccountKey=...;, postgres://user:password@host).
_SECRET_NAME = re.compile(
    r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|CONNECTION_STRING|_SAS\b", re.IGNORECASE
)
_SECRET_VALUE = re.compile(
    r"\w*(key|password|signature|sig)=[^;&\s]{8,}|://[^/@\s]+:[^/@\s]+@", re.IGNORECASE
)


def secret_values(variables: Mapping[str, str]) -> list[str]:
    """The values of environment variables that hold secrets, by their names or by themselves."""
    return [
        value
        for name, value in variables.items()
        if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value)
    ]


class Masker:
    """Replaces secrets by what stands for them: (secret, shown in its place).

    Secrets of fewer than `min_chars` characters are left alone: they are placeholders ("1",
    "EMPTY"), too likely to be a word of an honest text.
    """

    def __init__(self, secrets: Iterable[tuple[str, str]], *, min_chars: int) -> None:
        long = [pair for pair in secrets if len(pair[0]) >= min_chars]
        # Longest first, so that no secret leaves the rest of a longer one behind.
        self._secrets = sorted(long, key=lambda pair: len(pair[0]), reverse=True)

    def __call__(self, text: str) -> str:
        for secret, shown in self._secrets:
            text = text.replace(secret, shown)
        return text

    def occurs_in(self, text: str) -> bool:
        return any(secret in text for secret, _ in self._secrets)


def without_user_info(text: str) -> str:
    """`text` without the user and password of the addresses in it."""
    return _USER_INFO.sub("://[hidden]@", text)
