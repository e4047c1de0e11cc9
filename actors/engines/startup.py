"""How an engine's vLLM comes to run and ends: environment, cores, memory, noise, processes.

Everything that goes wrong on the way is one line, with the cause that vLLM only logs.
"""

import asyncio
import contextlib
import multiprocessing
import os
import re
import sys
from collections.abc import Awaitable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from stargate.actors.engines.spec import (
    EngineSpec,
    engine_arguments,
    engine_environment,
)
from stargate.actors.process.fork_server import FORKING_PYTHON
from stargate.actors.process.log_escaping import escape_output
from stargate.actors.process.paths import path_with_venv, socket_folder
from stargate.errors import EngineError, MachineError, ModelError, StargateError, one_line
from stargate.resources.account import complete_account
from stargate.resources.machine import GIB, memory
from stargate.resources.placement import listed_cores

T = TypeVar("T")

# How long vLLM's processes may take to end by themselves; torch alone needs some (seconds).
END_SECONDS = 20.0
# How long they may take to obey a signal (seconds).
SIGNAL_SECONDS = 5.0

# "ValueError: ..." at the end of a traceback, behind vLLM's own prefixes.
_EXCEPTION = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception)): (\S.*)$")
# vLLM's outer processes only say that an inner one failed.
_NOT_A_CAUSE = re.compile(r"initialization failed|See (root cause|stack trace)", re.IGNORECASE)
_MEMORY = re.compile(
    r"out of memory|available memory|can(no|')t allocate|MemoryError", re.IGNORECASE
)
# Seconds between looks whether the core lives, while its answer is awaited.
_LOOK_SECONDS = 1.0


class NoiseLog:
    """Sends file descriptors 1 and 2 of this process to a file until `close`.

    Processes that are started meanwhile inherit them. What Python writes here is escaped meanwhile.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _flush()
        log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._start = os.fstat(log).st_size
        self._saved = {target: os.dup(target) for target in (1, 2)}
        for target in self._saved:
            os.dup2(log, target)
        os.close(log)
        self._plain_again = escape_output()

    def root_cause(self) -> str | None:
        """The first exception in the log, as one line: in vLLM's nested processes, the cause."""
        _flush()
        with self.path.open("rb") as stream:
            stream.seek(self._start)
            return first_exception(stream.read().decode("utf-8", errors="replace"))

    def close(self) -> None:
        """Gives the descriptors back."""
        _flush()
        self._plain_again()
        for target, saved in self._saved.items():
            os.dup2(saved, target)
            os.close(saved)
        self._saved = {}


def first_exception(log: str) -> str | None:
    """The first line of a log that names an exception and its text: "ValueError: ..."."""
    for line in log.splitlines():
        found = _EXCEPTION.search(line)
        if found and not _NOT_A_CAUSE.search(line):
            return f"{found[1].rpartition('.')[2]}: {found[2].strip()}"
    return None


def is_about_memory(cause: str) -> bool:
    """Whether an error text says that memory ran out."""
    return _MEMORY.search(cause) is not None


def start_vllm(spec: EngineSpec, log: NoiseLog | None, stat_loggers: list[Any] | None) -> Any:
    """An AsyncLLM that runs. `log` holds what its processes have written.

    Raises ModelError for a model that vLLM refuses, MachineError, or EngineError.
    """
    complete_account()
    os.environ.update(engine_environment(spec))
    os.environ |= {"PATH": path_with_venv(), "VLLM_RPC_BASE_PATH": socket_folder()}
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_memory_bytes
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.device_type != spec.device:
        raise MachineError(
            f"{spec.role} engine: needs {spec.device}, but the installed vLLM runs "
            f"on {current_platform.device_type} here"
        )
    config = vllm_config(spec)
    executor, environment = _executor(spec, config)
    try:
        with environment:
            return AsyncLLM(
                config,
                executor,
                log_stats=False,
                log_requests=False,
                stat_loggers=stat_loggers,
            )
    except Exception as error:
        # vLLM says only that its core failed; the cause stands in the log.
        cause = (log.root_cause() if log else None) or explain(error)
        kind = MachineError if is_about_memory(cause) else EngineError
        text = f"{spec.role} engine: did not start: {cause}{see_log(log)}"
        raise kind(text) from error


def vllm_config(spec: EngineSpec) -> Any:
    """The spec as vLLM's own VllmConfig. Raises ModelError for a model that it refuses."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    try:
        # The context decides how many tokens a step has on this GPU: as vLLM's own class for texts
        # in bulk. Without one it would be 2,048 on every GPU.
        return AsyncEngineArgs(**engine_arguments(spec)).create_engine_config(
            UsageContext.LLM_CLASS
        )
    except (ValueError, OSError, NotImplementedError) as error:
        raise ModelError(f"{spec.model_dir}: {explain(error)}") from error


def _executor(spec: EngineSpec, config: Any) -> tuple[Any, contextlib.AbstractContextManager[None]]:
    """vLLM's executor, and the environment in which the core's process must start.

    A model on one device computes in vLLM's core itself, as vLLM does it on a GPU. On CPUs vLLM
    insists on a process of its own for the model, because OpenMP's threads are bound by variables
    that must be there when their process starts; here the core starts with them. That saves a
    third of an engine's start (one import of vLLM and torch, 8 s of a core), 0.6 GB, and a message
    each way at every step.
    """
    from vllm.v1.executor import Executor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    if spec.device != "cpu" or config.parallel_config.world_size > 1:
        return Executor.get_class(config), contextlib.nullcontext()
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    return UniProcExecutor, _core_environment(OMPProcessManager(config).configure_omp_envs(0, 0))


@contextlib.contextmanager
def _core_environment(openmp: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """With OpenMP's variables; the core is forked, if this process has a fork server."""
    try:
        with openmp:
            multiprocessing.set_executable(os.environ.get(FORKING_PYTHON, sys.executable))
            yield
    finally:
        multiprocessing.set_executable(sys.executable)


async def answered(llm: Any, call: Awaitable[T]) -> T:
    """What vLLM's core answers to a call. Raises EngineDeadError if it dies meanwhile.

    vLLM 0.32 ends generations when its core dies, but forgets those who wait for the answer to
    another call: they would wait for ever.
    """
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_SECONDS)
            if not task.done() and llm.errored:
                raise llm.dead_error
        return task.result()
    finally:
        task.cancel()


def pin_processes(processes: Iterable[psutil.Process], spec: EngineSpec) -> None:
    """Keeps vLLM's scheduler on its worker's cores.

    One works while the other waits, so there it takes nothing; elsewhere it would interrupt
    another engine's worker.
    """
    if spec.device != "cpu" or spec.cpu_cores is None:
        return
    free = os.sched_getaffinity(0)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if set(process.cpu_affinity()) == free:  # vLLM itself has bound its workers
                process.cpu_affinity(listed_cores(spec.cpu_cores))


def see_log(log: NoiseLog | None) -> str:
    """Where an error's reader finds more; "" if vLLM's noise goes nowhere."""
    return f" (log: {log.path})" if log else ""


def explain(error: BaseException) -> str:
    """An error as one line; the cause where vLLM wrapped it in an error without a text."""
    text = one_line(error)
    if not text and error.__cause__ is not None:
        return explain(error.__cause__)
    if isinstance(error, StargateError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_memory(needed_gb: float, what: str) -> None:
    """Raises MachineError when less than `needed_gb` (1e9 bytes) of memory is available."""
    available_gb = memory()[1] * GIB / 1e9  # not psutil's, which knows no container's limit
    if available_gb < needed_gb:
        raise MachineError(
            f"{what}: needs about {needed_gb:.1f} GB of memory, {available_gb:.1f} GB are free; "
            "close other programs or lower engine.cpu_kv_cache_gb"
        )


def child_processes() -> set[psutil.Process]:
    """All processes below this one, but Python's resource tracker, which ends with this one."""
    return {
        child
        for child in psutil.Process().children(recursive=True)
        if not _is_resource_tracker(child)
    }


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """CPU time that the living ones of some processes have used so far."""
    seconds = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            seconds += used.user + used.system
    return seconds


def kill_processes(processes: Iterable[psutil.Process]) -> None:
    """Ends processes at once, stopped ones too."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def end_processes(processes: set[psutil.Process]) -> None:
    """Waits for processes to end, then asks them to, then forces them. Blocks up to 30 s."""
    _, alive = psutil.wait_procs(list(processes), timeout=END_SECONDS)
    for process in alive:
        process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=SIGNAL_SECONDS)
    kill_processes(alive)
    psutil.wait_procs(alive, timeout=SIGNAL_SECONDS)


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:  # it has ended
        return True


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
