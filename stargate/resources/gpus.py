"""The NVIDIA GPUs that this process may use, and what is wrong with them.

    nvidia-smi, CUDA_VISIBLE_DEVICES -> gpus(): those that CUDA will show, in its order
                                     -> gpu_problem(), driver_problems(): one line each

Importing this needs the standard library only: requirements/install.py uses it before anything
is installed. `memory_gb` is GiB.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

MASK = "CUDA_VISIBLE_DEVICES"
# What torch and vLLM of requirements/gpu.lock are built for: CUDA 13 (NVIDIA's release notes).
DRIVER_MIN = 580
CAPABILITY_MIN = (7, 5)
# Where bfloat16, our default, has hardware; vLLM refuses it on older GPUs.
BFLOAT16_CAPABILITY = (8, 0)
_DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
_FIELDS = "index,uuid,mig.mode.current,name,memory.total,driver_version,compute_cap"
_MIG = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of it. `capability`: CUDA's compute capability."""

    name: str
    memory_gb: float
    driver: str
    capability: tuple[int, int]
    uuid: str


def gpus() -> tuple[Gpu, ...]:
    """Those that CUDA shows this process. Empty without any: `gpu_problem` tells why."""
    return visible(_present(), os.environ.get(MASK))


def gpu_problem() -> str | None:
    """A line where GPUs are there that this process can't use as it was told, else None."""
    if shutil.which("nvidia-smi") is None:
        if _DRIVER_FOLDER.is_dir() and any(_DRIVER_FOLDER.iterdir()):
            return (
                "the driver shows GPUs but nvidia-smi is missing; in a container set "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            )
        return None
    present = _present()
    if not present:
        return "nvidia-smi is installed but names no GPU; check the driver"
    mask = os.environ.get(MASK)
    used = len(visible(present, mask))
    if mask is None or used == len(mask.split(",")):
        return None
    return f"{MASK}={mask!r} names {used} usable of this machine's {len(present)} GPUs" + (
        "; unset it to use them all" if used == 0 else ": CUDA stops at the first that is not there"
    )


def driver_problems(found: Sequence[Gpu]) -> list[str]:
    """Why CUDA 13 can't compute on these GPUs: one line each."""
    problems = []
    for driver in sorted({gpu.driver for gpu in found}):
        if int(driver.partition(".")[0]) < DRIVER_MIN:
            problems.append(
                f"the NVIDIA driver is {driver}, CUDA 13 needs {DRIVER_MIN} or later: update it "
                "(on a cluster: ask for nodes that have it)"
            )
    for name, (major, minor) in sorted({(gpu.name, gpu.capability) for gpu in found}):
        if (major, minor) < CAPABILITY_MIN:
            problems.append(
                f"{name} has compute capability {major}.{minor}, CUDA 13 needs 7.5 or more: use "
                "another GPU, or the CPU (make install)"
            )
    return problems


def visible(present: Sequence[tuple[Gpu, ...]], mask: str | None) -> tuple[Gpu, ...]:
    """What CUDA shows of the GPUs of a machine; each entry: the GPU, then its MIG instances.

    As CUDA reads its mask: numbers, or beginnings of GPU- or of MIG- names, of the first one's
    kind; it stops at the first that is not there, and shows nothing if one comes twice. Of a GPU
    that is divided, which has instances, a number stands for the first of these.

    Worked example: 8 GPUs and "2,3,9" -> the third and the fourth.
    """
    whole = [gpu[1] if len(gpu) > 1 else gpu[0] for gpu in present]
    if mask is None:
        return tuple(whole)
    words = [word.strip() for word in mask.split(",")]
    kind = words[0][:4]
    chosen: list[Gpu] = []
    for word in words:
        if kind in ("GPU-", "MIG-"):
            named = [gpu for entry in present for gpu in entry if gpu.uuid.startswith(word)]
            found = named[0] if word.startswith(kind) and len(named) == 1 else None
        else:
            number = re.match(r"\+?\d+", word)
            index = int(number[0]) if number else len(whole)
            found = whole[index] if index < len(whole) else None
        if found is None:
            break
        if found in chosen:
            return ()
        chosen.append(found)
    return tuple(chosen)


def _present() -> list[tuple[Gpu, ...]]:
    """Every GPU of the machine with its MIG instances, whatever the mask says."""
    output = command_output("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
    listed = command_output("nvidia-smi", "-L") if "Enabled" in (output or "") else None
    found: list[tuple[Gpu, ...]] = []
    for line in (output or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_FIELDS.split(",")) or not cells[0].isdigit():
            continue
        _, uuid, mig, name, memory, driver, capability = cells
        major, _, minor = capability.partition(".")
        gpu = Gpu(name, _memory_gb(memory), driver, (int(major), int(minor)), uuid)
        instances = _instances(listed or "", len(found), gpu) if mig == "Enabled" else ()
        found.append((gpu, *instances))
    return found


def _instances(listed: str, index: int, gpu: Gpu) -> list[Gpu]:
    """The MIG instances of a GPU. Their profile tells the memory: 3g.20gb has 20.

    `listed` is what `nvidia-smi -L` says of all GPUs.
    """
    found, current = [], -1
    for line in listed.splitlines():
        instance = _MIG.match(line)
        if instance is None:
            current += line.startswith("GPU ")
        elif current == index:
            memory = re.search(r"(\d+)gb", instance[1])
            gib = float(memory[1]) if memory else gpu.memory_gb
            name = f"{gpu.name} MIG {instance[1]}"
            found.append(replace(gpu, name=name, memory_gb=gib, uuid=instance[2]))
    return found


def _memory_gb(mib: str) -> float:
    """GiB of a GPU; one that shares the machine's memory has no number of its own."""
    if mib.replace(".", "", 1).isdigit():
        return float(mib) / 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def command_output(*words: str) -> str | None:
    """What a command prints; None where it is missing, fails or hangs."""
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout
