"""What `stargate submit` sends to a cluster, worked out before anything is sent.

config, overrides, environment, files that git tracks -> checked -> entrypoint, env_vars, zip

Reads and writes local files only: Ray's job server is met in launch/submit.py.
"""

import re
import secrets
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from stargate.config.run import EngineRoleplayerConfig, RunConfig
from stargate.config.uri import is_uri, parse_uri, run_name
from stargate.errors import ConfigError, ExitCode, StargateError
from stargate.monitoring.progress import safe_text
from stargate.text.masking import Masker

# Larger files are no source code; Ray's head keeps the package in memory and sends it to all nodes.
MAX_FILE_BYTES = 10 * 2**20
MAX_PACKAGE_BYTES = 100 * 2**20
# Never sent, tracked or not: results, environments, history, caches.
EXCLUDED_PARTS = frozenset(
    {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
)
EXCLUDED_TOPS = frozenset({"runs", "build", "dist"})
# Where a config that git does not track lies in the package.
SUBMITTED = "submitted"
# Seconds between SIGTERM and SIGKILL when a job is stopped. Ray's own 3 are too few for engines to
# end and for the summary to be written.
STOP_SECONDS = 60
# What Ray sets for a job's command, and must not reach a Ray that a run starts for itself (with
# cluster.address=local): the job's runtime_env (its package lies in the cluster's store, where that
# Ray can't find it), and that actors get no CUDA_VISIBLE_DEVICES (all engines would take the first
# GPU). A run that uses the job's cluster needs the first, and Ray keeps its actors from the second.
JOB_VARIABLES = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES")
# Shorter values of --env ("1", "true") are no secrets, and masking them would spoil every line.
_MIN_SECRET_CHARS = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A zip of the same files is the same bytes, so that Ray finds it and does not store it twice.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_MAX_MESSAGE = 400


class SubmissionError(StargateError):
    """A job could not be submitted, followed or stopped, or failed before it started."""

    exit_code = ExitCode.SUBMISSION


@dataclass(frozen=True)
class Package:
    """Files to send: name in the package -> file here. `left_out` says which were not, and why."""

    files: dict[str, Path]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobRequest:
    """One job, ready to be submitted. Values of env_vars are secrets: not in repr."""

    submission_id: str
    entrypoint: str
    package: Package
    env_vars: dict[str, str] = field(repr=False)


def choose_files(root: Path, tracked: Iterable[str]) -> Package:
    """What of the tracked names (relative, "/") is sent. A link to a folder becomes the folder.

    Ray unpacks links as text files, so what they lead to is sent under their name.
    """
    names = sorted(set(tracked))
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for name in names:
        for sent, file in _follow_link(root, name, names):
            if _excluded(sent) or not file.is_file():
                continue  # results and caches; or deleted here but not yet in git
            if not file.resolve().is_relative_to(root.resolve()):
                left_out.append(f"{sent}: a link that leads out of the working tree")
            elif file.stat().st_size > MAX_FILE_BYTES:
                size = file.stat().st_size / 2**20
                left_out.append(f"{sent}: {size:.0f} MiB, more than {MAX_FILE_BYTES // 2**20}")
            else:
                files[sent] = file
    return Package(files, tuple(left_out))


def _follow_link(root: Path, name: str, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    link = root / name
    if not (link.is_symlink() and link.is_dir()):
        yield name, link
        return
    target = link.resolve()
    if not target.is_relative_to(root.resolve()):
        return
    prefix = target.relative_to(root.resolve()).as_posix() + "/"
    for other in names:
        if other.startswith(prefix) and not (root / other).is_dir():
            yield f"{name}/{other.removeprefix(prefix)}", root / other


def _excluded(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] in EXCLUDED_TOPS or not EXCLUDED_PARTS.isdisjoint(parts)


def place_config(package: Package, given: str) -> tuple[Package, str]:
    """The package with the config file in it, and the config's name there.

    The bare name of a packaged config stays as it is. A file that is not sent anyway is added.
    """
    file = Path(given)
    if not file.is_file():
        return package, given
    for name, sent in package.files.items():
        if sent.resolve() == file.resolve():
            return package, name
    name = f"{SUBMITTED}/{file.name}"
    return Package({**package.files, name: file}, package.left_out), name


def check_for_cluster(config: RunConfig, package: Package) -> None:
    """Raises ConfigError for paths that mean nothing, or lose the results, on another machine."""
    if not config.runs_dir.is_absolute():
        raise ConfigError(
            f"runs_dir is relative, got {str(config.runs_dir)!r}: the job's folder on the cluster "
            "is deleted after the job; give an absolute path on storage that stays, e.g. "
            "runs_dir=/mnt/shared/runs"
        )
    paths = {
        "data.source": config.data.source,
        "prompts": config.prompts,
        "model": config.model,
    }
    if isinstance(config.roleplayer, EngineRoleplayerConfig):
        paths["roleplayer.model"] = config.roleplayer.model
    for key, value in paths.items():
        path = Path(value)
        if path.is_absolute() or not path.exists():
            continue  # a path on the cluster, a packaged name or a Hugging Face id
        name = PurePosixPath(path.as_posix()).as_posix().rstrip("/")
        if not any(sent == name or sent.startswith(name + "/") for sent in package.files):
            raise ConfigError(
                f"{key}: {value} is here but is not sent with the job: git does not track it at "
                "this place of the working tree; add it, or give an absolute path on the cluster"
            )


def write_package(package: Package, target: Path) -> int:
    """Writes the zip and returns its size in bytes. Raises SubmissionError if it is too large."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(package.files):
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # Unix permissions stand in the upper 16 bits.
            entry.external_attr = (0o100755 if name.endswith(".sh") else 0o100644) << 16
            archive.writestr(entry, package.files[name].read_bytes())
    size = target.stat().st_size
    if size > MAX_PACKAGE_BYTES:
        raise SubmissionError(
            f"the working tree packs to {size / 2**20:.0f} MiB, at most "
            f"{MAX_PACKAGE_BYTES // 2**20} can be sent: put data on the cluster's storage"
        )
    return size


# `exec`: signals and the exit code are the run's own.
_STARGATE = ("exec", "python", "-m", "stargate.launch.cli")


def entrypoint(config: str, overrides: Sequence[str]) -> str:
    """The shell line that Ray runs."""
    return shlex.join([*_STARGATE, "run", config, *overrides])


def resume_entrypoint(run: str, to: str | None = None) -> str:
    """The same for a run that goes on; an address is fetched into `to` first.

    Raises ConfigError for a folder that means nothing there, and for an address with a secret.
    """
    command = [*_STARGATE, "resume"]
    if is_uri(run):
        uri = str(parse_uri(run))
        if to is None or not PurePosixPath(to).is_absolute():
            raise ConfigError(
                f"--resume {uri}: it is fetched into a folder of the cluster first, and the job's "
                "own is deleted after the job; give an absolute path there, e.g. --to /scratch/NAME"
            )
        return shlex.join([*command, uri, "--to", to])
    if to is not None:
        raise ConfigError("--to is for a run on shared storage; --resume names a folder")
    if not PurePosixPath(run).is_absolute():
        raise ConfigError(
            f"--resume {run}: give the run's absolute path on the cluster, e.g. "
            "/mnt/shared/runs/NAME-TIME, or its address on shared storage"
        )
    return shlex.join([*command, run])


def resumed_name(run: str) -> str:
    """The name of a run that goes on, fit for a submission id. Raises ConfigError."""
    name = run_name(parse_uri(run)) if is_uri(run) else PurePosixPath(run).name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def cluster_address(config: RunConfig, environment: Mapping[str, str]) -> str | None:
    """The cluster that a run attaches to; None: it starts a Ray of its own."""
    address = config.cluster.address
    if address is None and JOB_VARIABLES[0] in environment:
        return "auto"  # a submitted job: its own cluster
    return None if address == "local" else address


def job_environment(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """env_vars of the job's runtime_env: what was asked for, and time to end in order.

    Raises ConfigError, which shows no value.
    """
    values = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    for name in names:
        if not _NAME.fullmatch(name):
            # It may be NAME=VALUE with a secret in it: only what stands before "=" is shown.
            raise ConfigError(
                f"--env {name.partition('=')[0]}: expected a variable's name only; its value is "
                "read from the environment, where no process list shows it"
            )
        if name not in environment:
            raise ConfigError(f"--env {name}: this variable is not set here; export it first")
        values[name] = environment[name]
    return values


def new_submission_id(name: str, now: datetime | None = None) -> str:
    """An id chosen here, so that the job can be stopped even if the answer never arrived."""
    return f"{name}-{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def check_address(address: str) -> str:
    """The address without a trailing slash. Raises ConfigError unless it is http(s)://HOST."""
    parts = urlsplit(address)
    try:
        bad_port = parts.port == 0
    except ValueError:
        bad_port = True
    if parts.username or parts.password:
        raise ConfigError("--address: no user or password in it; Ray reads RAY_AUTH_TOKEN")
    if parts.scheme not in ("http", "https") or not parts.hostname or bad_port:
        raise ConfigError(
            f"--address {address!r}: expected the job server's URL, e.g. http://127.0.0.1:8265"
        )
    return address.rstrip("/")


def readable_by_others(address: str) -> bool:
    """Whether what is sent there crosses a network unencrypted."""
    parts = urlsplit(address)
    return parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1")


def exit_code(status: str, driver_exit_code: int | None) -> int:
    """This command's exit code for a job that has ended, as a shell would give it."""
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 130
    if not driver_exit_code:
        return 1
    # Popen says -9 for a process that signal 9 ended; a shell says 128 + 9.
    return 128 - driver_exit_code if driver_exit_code < 0 else min(driver_exit_code, 255)


class EnvMasker(Masker):
    """Replaces the values of --env by their names wherever they would be shown."""

    def __init__(self, values: Mapping[str, str]) -> None:
        secrets = ((value, f"[{name}]") for name, value in values.items())
        super().__init__(secrets, min_chars=_MIN_SECRET_CHARS)

    def line(self, text: str) -> str:
        """A message of Ray's on one line, masked, safe for a terminal, and not too long."""
        words = " ".join(safe_text(self(text)).split())
        return words if len(words) <= _MAX_MESSAGE else words[:_MAX_MESSAGE] + " ..."


class LogView:
    """The job's log as whole lines, each shown once though following begins anew.

    Ray sends a log from its start at every connection, in chunks that may end within a line:

        >>> view = LogView(EnvMasker({}))
        >>> view.feed("one\\ntw")
        'one\\n'
        >>> view.restart()  # the connection was lost
        >>> view.feed("one\\ntwo\\n")
        'two\\n'
    """

    def __init__(self, mask: EnvMasker) -> None:
        self._mask = mask
        self._seen = 0  # characters of the log that were fed, over all connections
        self._position = 0  # characters of the log that this connection has sent
        self._rest = ""

    def restart(self) -> None:
        self._position = 0

    def feed(self, chunk: str) -> str:
        """The lines that are complete now."""
        fresh = chunk[max(0, self._seen - self._position) :]
        self._position += len(chunk)
        self._seen = max(self._seen, self._position)
        lines, newline, self._rest = (self._rest + fresh).rpartition("\n")
        return self._shown(lines + newline)

    def flush(self) -> str:
        """A last line without an end."""
        rest, self._rest = self._rest, ""
        return self._shown(rest + "\n") if rest else ""

    def _shown(self, text: str) -> str:
        return safe_text(self._mask(text.replace("\r\n", "\n").replace("\t", "    ")))
