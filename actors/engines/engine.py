"""One inference engine: vLLM's AsyncLLM behind the few methods that the loop needs.

    EngineSpec -> start -> generate          many at once, each awaits only its own text
                           load_weights      holds generation, swaps weights, goes on
                           sleep / wake_up   gives the GPU to others (by gpu_phases.py)
                        -> shutdown

A plain class: spawn.py wraps it with `ray.remote`, tests use it as it is. vLLM runs its scheduler
and workers in processes of their own; this one only passes tokens: token ids in, token ids out.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from stargate.actors.engines.core_watch import CoreWatch
from stargate.actors.engines.spec import (
    EngineInfo,
    EngineSpec,
    EngineStats,
    needed_memory_gb,
    sampling_arguments,
)
from stargate.actors.engines.startup import (
    END_SECONDS,
    SIGNAL_SECONDS,
    NoiseLog,
    answered,
    check_memory,
    child_processes,
    end_processes,
    explain,
    pin_processes,
    see_log,
    start_vllm,
)
from stargate.actors.engines.weight_files import (
    TensorHeader,
    check_compatible,
    num_parameters,
    read_headers,
)
from stargate.actors.rpc.batched_calls import BatchedServer, CallBatch, Delivery
from stargate.errors import EngineError, RecordDropped
from stargate.records.model_folder import check_model_folder, weight_files
from stargate.types import GenerateRequest, Generation, StopReason

_STOP_REASONS = {"stop": StopReason.STOP, "length": StopReason.LENGTH}


class Engine:
    """One vLLM engine. All methods run in one event loop; many may be in flight at once.

    When vLLM has died or a weight update failed half-way, `fatal` says why, `on_fatal` was called
    with it (once), and every call raises EngineError: this engine must be replaced by a new one.
    """

    def __init__(self, spec: EngineSpec, on_fatal: Callable[[str], None] | None = None) -> None:
        self.spec = spec
        self.fatal: str | None = None
        self._on_fatal = on_fatal
        self._llm: Any = None
        self._tokenizer: Any = None
        self._max_model_len = 0
        self._version = spec.policy_version
        self._served: dict[str, TensorHeader] = {}  # what the weights of a push must match
        self._push_lock = asyncio.Lock()
        self._stats = EngineStats()
        self._num_in_flight = 0
        self._asleep = 0  # vLLM's level
        self._busy_since = 0.0
        self._log: NoiseLog | None = None
        self._processes: set[psutil.Process] = set()
        self._server = BatchedServer(self.generate, lambda: self.fatal)

    async def start(self) -> EngineInfo:
        """Starts vLLM. Raises ModelError for a bad model folder, MachineError, or EngineError."""
        started = time.perf_counter()
        if self._llm is not None:
            raise self._error("it runs already")
        self._served = _headers_if_it_fits(self.spec)
        if self.spec.log_file is not None:
            self._log = NoiseLog(self.spec.log_file)
        before = child_processes()
        try:
            self._llm = start_vllm(self.spec, self._log, self._stat_loggers())
            self._tokenizer = self._llm.get_tokenizer()
            self._max_model_len = self._llm.model_config.max_model_len
            await answered(self._llm, self._llm.update_weight_version(str(self._version)))
        except BaseException:
            self._processes = child_processes() - before
            await self.shutdown()
            raise
        self._processes = child_processes() - before
        self._core = CoreWatch(self.reported_version, self._processes, self._fail)
        pin_processes(self._processes, self.spec)
        return EngineInfo(self._max_model_len, os.getpid(), time.perf_counter() - started)

    async def generate(self, request: GenerateRequest) -> Generation:
        """Generates one text.

        Raises RecordDropped ("prompt_too_long", "prompt_empty") where the request is at fault,
        else EngineError.
        """
        llm = self._running()
        if self._asleep:  # vLLM would take the request, and keep it until somebody wakes it
            raise self._error(f"{request.request_id}: it is asleep")
        if (dropped := _unfit_prompt(request, self.spec.role, self._max_model_len)) is not None:
            self._count(num_dropped=1)
            raise dropped
        if self._num_in_flight == 0:
            self._busy_since = time.perf_counter()
        self._num_in_flight += 1
        try:
            output = await self._final_output(llm, request)
        finally:
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self._count(busy_seconds=time.perf_counter() - self._busy_since)
        if self.fatal is not None:
            # A weight update failed while this text was written: by which weights, nobody knows.
            raise EngineError(self.fatal)
        try:
            generation = _to_generation(request, output, self._tokenizer)
        except ValueError as error:
            raise self._error(f"{request.request_id}: {error}") from None
        self._count(
            num_requests=1,
            num_mixed=len(output.outputs[0].weight_versions) > 1,
            num_prompt_tokens=generation.num_prompt_tokens,
            num_cached_tokens=generation.num_cached_tokens,
            num_generated_tokens=len(generation.token_ids),
        )
        return generation

    async def exchange(self, batch: CallBatch[GenerateRequest]) -> Delivery[Generation]:
        """Many `generate` of one caller in few remote calls; see batched_calls.py."""
        return await self._server.exchange(batch)

    async def load_weights(self, weights: str, version: int) -> dict[str, float]:
        """Replaces the weights by those of a safetensors file or a model folder.

        Returns seconds by phase. Texts in flight are held; they go on under the new weights, with
        their context computed anew. Raises ModelError before anything is touched; EngineError (and
        sets `fatal`) when the update itself fails.
        """
        llm = self._running()
        async with self._push_lock:
            phases: dict[str, float] = {}
            with _timed(phases, "check"):
                check_compatible(weights, self._served)
            try:
                with self._or_fatal(f"update to weights version {version}"):
                    if self._asleep:
                        with _timed(phases, "wake"):
                            await answered(llm, llm.wake_up(["weights"]))
                    await _replace_weights(llm, weights, version, phases)
                    self._version = version
                    if self._asleep:
                        with _timed(phases, "wake_cache"):
                            await answered(llm, llm.wake_up(["kv_cache"]))
                        self._asleep = 0
                    with _timed(phases, "resume"):
                        await answered(llm, llm.resume_generation())
            except BaseException:
                # So that held requests end, in an error. If this fails as well, vLLM is dead.
                with contextlib.suppress(Exception):
                    await answered(llm, llm.resume_generation())
                raise
        return phases

    async def sleep(self, level: int) -> None:
        """Frees the GPU; `wake_up` or `load_weights` end it. One that sleeps already sleeps on.

        Level 1 keeps the weights in the host's memory, level 2 keeps none: only for an engine that
        gets new ones. What is still being generated is aborted. Raises EngineError.
        """
        llm = self._running()
        async with self._push_lock:
            if self._asleep:
                return
            # Before it is done: a request that came meanwhile would wait for ever.
            self._asleep = level
            with self._or_fatal(f"sleep at level {level}"):
                await answered(llm, llm.sleep(level=level))

    async def wake_up(self) -> bool:
        """Ends the sleep; one that is awake stays so. Raises EngineError.

        False: it sleeps on, because it has no weights. It takes `load_weights` to wake it.
        """
        llm = self._running()
        async with self._push_lock:
            if self._asleep > 1:
                return False
            if self._asleep:
                with self._or_fatal("wake up"):
                    await answered(llm, llm.wake_up())
                self._asleep = 0
            return True

    async def reported_version(self) -> int:
        """The version of the weights, as vLLM's core itself reports it: so the core lives."""
        llm = self._running()
        try:
            return int(await answered(llm, llm.get_weight_version()))
        except Exception as error:
            raise self._engine_error(error, "weights version") from error

    async def check_health(self) -> None:
        """Returns within seconds, whatever goes on; EngineError if this one must be replaced."""
        self._running()
        await self._core.look(moves_weights=self._push_lock.locked())

    async def stats(self) -> EngineStats:
        """Counts up to this moment."""
        busy = self._stats.busy_seconds
        if self._num_in_flight:
            busy += time.perf_counter() - self._busy_since
        return replace(self._stats, busy_seconds=busy)

    async def shutdown(self) -> None:
        """Ends vLLM and all its processes, in order (about 7 s). May be called more than once."""
        llm, self._llm, self._tokenizer = self._llm, None, None
        if llm is not None:
            handler = llm.output_handler
            # With less time vLLM kills its core while that still cleans up shared memory.
            llm.shutdown(timeout=END_SECONDS)
            if handler is not None:
                await asyncio.wait({handler}, timeout=SIGNAL_SECONDS)
            # Now: at the interpreter's exit vLLM's destructor prints a traceback.
            del llm, handler
        processes, self._processes = self._processes, set()
        await asyncio.to_thread(end_processes, processes)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _stat_loggers(self) -> list[Any] | None:
        """What vLLM reports each step to: nothing, because it costs time at every step."""
        return None

    async def _final_output(self, llm: Any, request: GenerateRequest, **settings: Any) -> Any:
        """vLLM's finished request. `settings` go before those of the request's own sampling."""
        arguments = sampling_arguments(request.sampling, self.spec.device) | settings
        prompt, parameters = _to_vllm(request, arguments, self._version)
        final = None
        try:
            async for output in llm.generate(prompt, parameters, request.request_id):
                final = output
        except Exception as error:
            raise self._engine_error(error, request.request_id) from error
        if final is None:
            raise self._error(f"{request.request_id}: ended without an output")
        return final

    def _running(self) -> Any:
        if self.fatal is not None:
            raise EngineError(self.fatal)
        if self._llm is None:
            raise self._error("it does not run")
        return self._llm

    def _engine_error(self, error: Exception, where: str) -> EngineError:
        """What vLLM raised, as ours. A dead core makes this engine `fatal`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, EngineDeadError):
            cause = (self._log.root_cause() if self._log else None) or "no cause was logged"
            return self._fail(f"vLLM's core died: {cause}")
        return self._error(f"{where}: {explain(error)}")

    @contextlib.contextmanager
    def _or_fatal(self, what: str) -> Iterator[None]:
        """If the block fails, also when cancelled, nobody knows what the engine holds."""
        try:
            yield
        except BaseException as error:
            failure = self._fail(f"{what}: {explain(error)}")
            if isinstance(error, Exception):
                raise failure from error
            raise

    def _fail(self, what: str) -> EngineError:
        """Marks this engine as one to be replaced. Returns the error to raise."""
        if self.fatal is None:
            self.fatal = f"{self.spec.role} engine: {what}{see_log(self._log)}"
            if self._on_fatal is not None:
                self._on_fatal(self.fatal)
        return EngineError(self.fatal)

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self.spec.role} engine: {what}")

    def _count(self, **more: float) -> None:
        sums = {name: getattr(self._stats, name) + n for name, n in more.items()}
        self._stats = replace(self._stats, **sums)


def _headers_if_it_fits(spec: EngineSpec) -> dict[str, TensorHeader]:
    """The tensors of a model that can be served here. Raises ModelError or MachineError."""
    check_model_folder(Path(spec.model_dir))
    headers = read_headers(spec.model_dir)
    if spec.device == "cpu":
        check_memory(needed_memory_gb(spec, num_parameters(headers)), f"{spec.role} engine")
    return headers


def _unfit_prompt(request: GenerateRequest, role: str, max_model_len: int) -> RecordDropped | None:
    """Why vLLM would not take the prompt."""
    length = len(request.prompt_ids)
    if length == 0:
        return RecordDropped("prompt_empty", request.request_id, "the prompt has no tokens")
    if length < max_model_len:
        return None
    return RecordDropped(
        "prompt_too_long",
        request.request_id,
        f"{length} prompt tokens and one to generate exceed the {role}'s max_model_len of "
        f"{max_model_len}",
    )


def _to_vllm(request: GenerateRequest, arguments: dict[str, Any], version: int) -> tuple[Any, Any]:
    """vLLM's prompt and sampling parameters. `version` is that of the weights."""
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    parameters = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **arguments)
    # The salt keeps what was computed under other weights from being reused.
    return tokens_input(list(request.prompt_ids), cache_salt=str(version)), parameters


def _to_generation(request: GenerateRequest, output: Any, tokenizer: Any) -> Generation:
    """vLLM's finished request as our record. Raises ValueError if it did not end itself."""
    completion = output.outputs[0]
    stop = _STOP_REASONS.get(completion.finish_reason)
    if stop is None:
        raise ValueError(f"ended by {completion.finish_reason!r}")
    if not completion.weight_versions:
        raise ValueError("vLLM reported no weights version")
    token_ids = tuple(completion.token_ids)
    num_read = request.sampling.num_prompt_logprobs
    return Generation(
        text=tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ),
        token_ids=token_ids,
        stop=stop,
        policy_version=int(completion.weight_versions[0].version),
        num_prompt_tokens=len(request.prompt_ids),
        num_cached_tokens=output.num_cached_tokens or 0,
        # One entry per token: more were not asked for.
        logprobs=tuple(completion.logprobs.logprobs) if request.sampling.logprobs else None,
        prompt_logprobs=tuple(output.prompt_logprobs.logprobs[-num_read:]) if num_read else None,
    )


async def _replace_weights(llm: Any, weights: str, version: int, phases: dict[str, float]) -> None:
    """vLLM's own protocol, up to the point where generation may go on."""
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    files = [str(file) for file in weight_files(weights)]
    with _timed(phases, "pause"):
        await answered(llm, llm.pause_generation(mode="keep"))
    with _timed(phases, "start"):
        await answered(llm, llm.start_weight_update())
    with _timed(phases, "update"):
        request = WeightTransferUpdateRequest(update_info={"files": files})
        await answered(llm, llm.update_weights(request))
    with _timed(phases, "finish"):
        await answered(llm, llm.finish_weight_update(weight_version=str(version)))
    with _timed(phases, "reset"):
        if not await answered(llm, llm.reset_prefix_cache()):
            raise EngineError("the prefix cache could not be reset")
    reported = await answered(llm, llm.get_weight_version())
    if reported != str(version):
        raise EngineError(f"the engine reports version {reported}")


@contextlib.contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - started
