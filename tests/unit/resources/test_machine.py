"""Facts about the machine, its needs, and the memory sampler."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stargate.actors.runtime import node_agent
from stargate.config.run import RunConfig
from stargate.monitoring import memory
from stargate.resources import machine, preflight


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1048576 kB\nMemAvailable: 4194304 kB\n"  # 8, 1, 4 GiB
GIB = 2**30


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        pytest.param(
            "0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, (8.0, 4.0), id="no limit"
        ),
        pytest.param(
            "0::/a/b\n",
            {
                "a/memory.max": str(3 * GIB),
                "a/memory.current": str(2 * GIB),
                "a/memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
                "a/b/memory.max": "max",
                "a/b/memory.current": str(2 * GIB),
            },
            (3.0, 1.5),
            id="the tightest cgroup v2 on the way up",
        ),
        pytest.param(
            "0::/\n",
            {
                "memory.max": str(3 * GIB),
                "memory.high": str(2 * GIB),
                "memory.current": str(GIB),
            },
            (2.0, 1.0),
            id="where the kernel begins to slow down",
        ),
        # The path is the host's and does not exist inside; the container's limits are at the root.
        pytest.param(
            "4:memory:/docker/1\n",
            {
                "memory/memory.limit_in_bytes": str(2 * GIB),
                "memory/memory.usage_in_bytes": str(GIB),
            },
            (2.0, 1.0),
            id="cgroup v1 of a container",
        ),
        pytest.param(
            "4:memory:/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": str(7 * GIB),
            },
            (8.0, 4.0),
            id="cgroup v1 without a limit",
        ),
    ],
)
def test_memory_is_the_machines_cut_by_cgroups(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cgroup: str,
    files: dict[str, str],
    expected: tuple[float, float],
) -> None:
    proc = write(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": cgroup})
    monkeypatch.setattr(machine, "PROC", proc)
    monkeypatch.setattr(machine, "CGROUPS", write(tmp_path / "cg", files))
    assert machine.memory() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_cores_are_cut_by_the_cpu_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    proc = write(tmp_path / "proc", {"self/cgroup": "3:cpu:/\n0::/\n"})
    monkeypatch.setattr(machine, "PROC", proc)
    monkeypatch.setattr(machine, "CGROUPS", write(tmp_path / "cg", files))
    assert machine.usable_cores() == expected


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        pytest.param(
            "0::/a/b\n",
            {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"},
            (4, 5),
            id="v2, the tightest on the way up",
        ),
        pytest.param(
            "4:memory:/\n7:cpu,cpuacct:/docker/1/inner\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/docker/1/inner/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/docker/1/inner/cpu.cfs_period_us": "100000",
            },
            (4, 5),
            id="v1 with two controllers in one folder, nested",
        ),
        pytest.param("0::/\n", {"cpu.max": "50000 100000"}, (4,), id="half a core is one"),
    ],
)
def test_the_cores_to_work_on_are_as_many_as_the_quota_has(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cgroup: str,
    files: dict[str, str],
    expected: tuple[int, ...],
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
    monkeypatch.setattr(machine, "PROC", write(tmp_path / "proc", {"self/cgroup": cgroup}))
    monkeypatch.setattr(machine, "CGROUPS", write(tmp_path / "cg", files))
    assert machine.core_numbers() == expected


def test_a_node_has_the_cores_of_its_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    assert node_agent.node_report(RunConfig(), ()).cores == (2,)


def test_a_port_to_meet_on_is_none_that_the_system_gives_to_others() -> None:
    """Between its choice and its use seconds pass, in which another run opens hundreds."""
    words = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    given = range(int(words[0]), int(words[1]) + 1)
    ports = [machine.free_port() for _ in range(20)]
    assert not set(ports) & set(given)
    assert len(set(ports)) > 15  # two runs that start at once draw different ones


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: [port])
        assert machine.free_port() not in (0, port)


def test_cpu_model_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor : 0\nmodel name : Fast 9000\nflags : avx2 avx512_bf16\n\nprocessor : 1\n"
    monkeypatch.setattr(machine, "PROC", write(tmp_path, {"cpuinfo": text}))
    assert machine.cpu_model() == ("Fast 9000", frozenset({"avx2", "avx512_bf16"}))


def test_too_little_memory_is_said_with_what_was_got(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (8.0, 3.25))
    assert machine.memory_problem(3.0, "this run") is None
    problem = machine.memory_problem(12.0, "this run")
    assert problem is not None
    assert problem.startswith("this run needs about 12 GiB of free memory, got 3.2 GiB (of 8.0)")


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert machine.git_state(tmp_path) is None
    git("init", "-q")
    assert machine.git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "x")
    commit = git("rev-parse", "HEAD")
    assert machine.git_state(tmp_path) == machine.GitState(commit, dirty=False)
    (tmp_path / "a").write_text("2")
    assert machine.git_state(tmp_path) == machine.GitState(commit, dirty=True)
    (tmp_path / "inside").mkdir()
    assert machine.git_state(tmp_path / "inside") is None  # another project's repository


def test_missing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    problems = preflight.toolchain_problems("cpu")
    assert [line for line in problems if line.startswith("no C++ compiler")] == problems
    assert len(problems) == 1


def test_old_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    assert any("needs Python 3.11 to 3.13" in line for line in preflight.toolchain_problems("cpu"))


def test_full_disk_and_small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "disk_free_gb", lambda _: 0.5)
    monkeypatch.setattr(machine, "memory", lambda: (8.0, 3.0))
    for kind, needed in preflight.INSTALL_DISK_GB.items():
        problem = preflight.disk_problem(tmp_path, kind) or ""
        assert f"{needed:.0f} GiB of free disk, got 0.5 GiB" in problem
    lines = preflight.demo_problems(tmp_path / "runs", tmp_path / "cache")
    assert any("free memory, got 3.0 GiB (of 8.0)" in line for line in lines)
    assert any(line.startswith("runs need 2 GiB of disk, got 0.5") for line in lines)


@pytest.mark.parametrize(
    ("kind", "machine", "problem"),
    [
        ("cpu", "x86_64", None),
        ("gpu", "aarch64", None),
        ("cpu", "aarch64", "cpu.lock is for x86_64, got aarch64"),
        ("gpu", "riscv64", "gpu.lock is for x86_64 and aarch64, got riscv64"),
    ],
)
def test_processors_that_a_lock_file_has_no_wheels_for(
    monkeypatch: pytest.MonkeyPatch, kind: str, machine: str, problem: str | None
) -> None:
    monkeypatch.setattr(preflight.platform, "machine", lambda: machine)
    said = [line for line in preflight.toolchain_problems(kind) if ".lock" in line]
    assert said == ([problem] if problem else [])


def test_little_shared_memory_is_said_for_several_gpus_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB, as containers have them: a run on a CPU works there (test_any_machine.py)."""
    usage = SimpleNamespace(total=64 << 20, free=64 << 20)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    assert "has 0.06 GiB, NCCL wants 1" in (preflight.shared_memory_problem() or "")
    usage.total = 2 << 30
    assert preflight.shared_memory_problem() is None
    usage.total = 64 << 20
    monkeypatch.setattr(preflight, "disk_free_gb", lambda _: 50.0)
    assert not any("shm" in line for line in preflight.demo_problems(tmp_path, tmp_path))


def test_the_demo_is_not_begun_with_a_vllm_for_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "vllm_build", lambda: "cuda")
    [first, *_] = preflight.demo_problems(tmp_path, tmp_path)
    assert first.startswith("this run is on cpu, the installed vLLM is built for cuda")


def test_environment_names_versions_and_is_plain() -> None:
    facts = machine.environment()
    assert facts["packages"]["pydantic"]
    assert "vllm-cpu-that-does-not-exist" not in facts["packages"]
    assert facts["cores"] >= 1
    assert facts["memory_total_gb"] >= facts["memory_available_gb"] > 0


HOLD = (
    "import time; block = bytearray(b'x') * (300 << 20); print('ready', flush=True); time.sleep(60)"
)


def test_peak_memory_counts_grandchildren_and_keeps_the_peak() -> None:
    # A shell holds a Python: the memory is two levels below us.
    command = ["sh", "-c", f'{sys.executable} -c "{HOLD}"; true']
    with memory.PeakMemory(interval_s=0.02, max_share=1.0) as sampler:
        before = sampler.sample().gb
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            during = sampler.sample()
            for pid in _descendants(child.pid):
                os.kill(pid, 9)
        after = sampler.sample().gb
    assert during.measure == "pss"
    assert 0.28 < during.gb - before < 0.40
    assert after < before + 0.1
    assert sampler.peak().gb >= during.gb
    assert sampler.peak().num_samples > 3


def test_peak_memory_keeps_orphans() -> None:
    # The middle process ends: the one that holds memory is no descendant of ours any more.
    code = (
        "import subprocess, sys, time;"
        f"child = subprocess.Popen([sys.executable, '-c', {HOLD!r}], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True); sys.stdin.readline()"
    )
    sampler = memory.PeakMemory()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as middle:
        assert middle.stdout is not None
        orphan = int(middle.stdout.readline())
        try:
            held = sampler.sample().gb
            middle.communicate(b"\n")
            assert sampler.sample().gb > held - 0.1
            assert memory.PeakMemory().sample().gb < held - 0.2  # one that never saw it
        finally:
            os.kill(orphan, 9)


def _descendants(pid: int) -> list[int]:
    import psutil

    process = psutil.Process(pid)
    return [child.pid for child in process.children(recursive=True)]
