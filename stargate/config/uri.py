"""The address of shared storage: what it may hold, so that it never holds a secret.

    s3://bucket/prefix?region=eu-central-1     gs://bucket/prefix     file:///mnt/shared/records
    hdfs://namenode:8020/records               what fsspec has a file system for (abfs://, memory://)

Addresses stand in config.yaml, on the screen and in a job's command line. So they may hold no
user, password or key: whatever could be one is refused by its place, and is not shown. Credentials
come from the environment or the machine, where each storage's own library looks for them.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from stargate.errors import ConfigError

_URI = re.compile(r"([a-z][a-z0-9+.-]+)://")
# All query parameters that may be given, by scheme: a list of what is harmless, since a list of
# what is secret would never be whole.
_PARAMETERS = {
    "s3": {"region", "scheme", "endpoint_override", "allow_bucket_creation"},
    "gs": {"scheme", "endpoint_override", "retry_limit_seconds", "project_id"},
    "gcs": {"scheme", "endpoint_override", "retry_limit_seconds", "project_id"},
    "hdfs": {"replication", "buffer_size", "default_block_size"},
}
_VALUE = re.compile(r"[A-Za-z0-9._:/\[\]-]{0,200}")
_PARAMETER = re.compile(r"[a-z_]{1,32}")
_ANONYMOUS = "anonymous@"  # pyarrow's way to say "without credentials" for gs
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_uri(text: str) -> bool:
    """Whether a command line's argument is an address and not a folder."""
    return _URI.match(text) is not None


@dataclass(frozen=True, slots=True)
class StorageUri:
    """An address that was checked. `place` is what stands between scheme and query."""

    scheme: str
    place: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}" + (f"?{self.query}" if self.query else "")

    @property
    def name(self) -> str:
        """The last part: a run's name, if this is the address of one."""
        return self.place.rstrip("/").rpartition("/")[2]

    def child(self, name: str) -> "StorageUri":
        """The address of `name` in this folder."""
        return StorageUri(self.scheme, f"{self.place.rstrip('/')}/{name}", self.query)


def parse_uri(text: str) -> StorageUri:
    """Checks an address. Raises ConfigError, which shows nothing that may be a secret."""
    match = _URI.match(text)
    if match is None:
        raise ConfigError(
            "an address of shared storage starts with its scheme, e.g. s3://bucket/prefix, "
            "gs://bucket/prefix or file:///mnt/shared"
        )
    scheme = match[1]
    if not text.isprintable():  # urlsplit would leave line breaks out
        raise ConfigError(f"the {scheme}:// address may have no control characters")
    try:
        parts = urlsplit(text)
        parameters = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise ConfigError(f"the {scheme}:// address is not a valid one") from None
    netloc = parts.netloc
    if scheme in ("gs", "gcs"):
        netloc = netloc.removeprefix(_ANONYMOUS)
    # A secret may have a slash in it, so an @ is looked for everywhere.
    if "@" in netloc + parts.path + parts.query or (
        ":" in netloc and (scheme != "hdfs" or not re.fullmatch(r"[^:]+:\d{1,5}", netloc))
    ):
        raise ConfigError(
            f"the {scheme}:// address must hold no user, password or key (what stands before an "
            "@); give them in the environment, e.g. as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    _check_parameters(scheme, parameters)
    _check_path(scheme, netloc, parts.path, parts.fragment)
    return StorageUri(scheme, parts.netloc + parts.path.rstrip("/"), parts.query)


def run_name(uri: StorageUri) -> str:
    """The name of the run at this address. Raises ConfigError if it can't be a folder's."""
    if not _NAME.fullmatch(uri.name):
        raise ConfigError(f"{uri}: its last part is no name of a run")
    return uri.name


def _check_parameters(scheme: str, parameters: list[tuple[str, str]]) -> None:
    known = _PARAMETERS.get(scheme, set())
    for key, value in parameters:
        if key not in known:
            shown = key if _PARAMETER.fullmatch(key) else "a parameter"
            allowed = f": there may be {', '.join(sorted(known))}" if known else ""
            raise ConfigError(
                f"the {scheme}:// address must not have {shown} after its ?{allowed}; keys and "
                "tokens belong into the environment"
            )
        if not _VALUE.fullmatch(value):
            raise ConfigError(f"the {scheme}:// address has an odd value for {key}")


def _check_path(scheme: str, netloc: str, path: str, fragment: str) -> None:
    whole = netloc + path
    odd = "%" in whole or "\\" in whole or " " in whole
    if odd or fragment or any(part in (".", "..") for part in path.split("/")):
        raise ConfigError(
            f"the {scheme}:// address may have no spaces, no \\, % or #, and no . or .. as a part"
        )
    if scheme == "file":
        if netloc or len(path) < 2:
            raise ConfigError("an address of a folder is file:/// and its absolute path")
    elif not netloc:
        raise ConfigError(f"the {scheme}:// address names no bucket or host")
