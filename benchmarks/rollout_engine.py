"""An engine that keeps what it was asked, so that the same work can be done again.

    pipeline -> generate, each kept as Served -> served
    Served -> replay: the same prompts and output lengths, as independent requests, all at once

It also counts what vLLM reports at every step: how full the batch was, how long requests waited.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stargate.actors.engines.engine import Engine
from stargate.actors.rpc.batched_calls import CallBatch, Delivery
from stargate.errors import EngineError
from stargate.types import GenerateRequest, Generation


@dataclass(frozen=True, slots=True)
class Served:
    """One finished request. Times are seconds of this machine's monotonic clock."""

    request: GenerateRequest
    num_generated: int
    num_cached: int
    submitted: float
    finished: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass asked of the engines, and the prompt tokens found in prefix caches."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.num_requests + other.num_requests,
            self.num_prompt_tokens + other.num_prompt_tokens,
            self.num_generated_tokens + other.num_generated_tokens,
            self.num_cached_tokens + other.num_cached_tokens,
        )


def work_of(served: Iterable[Served]) -> Work:
    """The sum over finished requests."""
    return sum((_work(one, one.num_generated, one.num_cached) for one in served), Work())


def _work(one: Served, num_generated: int, num_cached: int) -> Work:
    return Work(1, len(one.request.prompt_ids), num_generated, num_cached)


@dataclass
class StepFigures:
    """What vLLM's steps looked like. `queue_seconds`: per request, until it was first scheduled."""

    num_steps: int = 0
    num_running: int = 0  # summed over steps
    num_waiting: int = 0  # summed over steps
    peak_kv_usage: float = 0.0
    num_preempted: int = 0
    queue_seconds: list[float] = field(default_factory=list)


class MeasuredEngine(Engine):
    """An Engine that keeps records. Every other part of it is the one that a run uses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._records: list[Served] = []
        self._steps = StepFigures()
        self._num_calls = 0

    async def generate(self, request: GenerateRequest) -> Generation:
        """Generates one text, and keeps the request with its output length."""
        submitted = time.perf_counter()
        generation = await super().generate(request)
        self._records.append(
            Served(
                request=request,
                num_generated=len(generation.token_ids),
                num_cached=generation.num_cached_tokens,
                submitted=submitted,
                finished=time.perf_counter(),
            )
        )
        return generation

    async def exchange(self, batch: CallBatch[GenerateRequest]) -> Delivery[Generation]:
        """Counts the remote calls that bring requests and fetch texts."""
        self._num_calls += 1
        return await super().exchange(batch)

    async def reset(self) -> None:
        """Forgets prefix cache, records and figures, so that passes start equal."""
        if not await self._running().reset_prefix_cache():
            raise EngineError(f"{self.spec.role} engine: the prefix cache could not be reset")
        self._records = []
        self._steps = StepFigures()
        self._num_calls = 0

    async def served(self) -> list[Served]:
        """The requests since `reset`, in the order in which they came."""
        return sorted(self._records, key=lambda one: one.submitted)

    async def num_calls(self) -> int:
        """Remote calls since `reset` that brought requests or fetched texts."""
        return self._num_calls

    async def steps(self) -> StepFigures:
        """vLLM's own figures since `reset`."""
        return self._steps

    async def process_id(self) -> int:
        return os.getpid()

    async def replay(self, requests: Sequence[Served]) -> Work:
        """Serves the same prompts with the same output lengths, all submitted at once."""
        llm = self._running()
        return sum(await asyncio.gather(*(self._again(llm, one) for one in requests)), Work())

    async def _again(self, llm: Any, one: Served) -> Work:
        output = await self._final_output(
            llm, one.request, max_tokens=one.num_generated, ignore_eos=True
        )
        got = len(output.outputs[0].token_ids)
        if got != one.num_generated:
            raise EngineError(
                f"{one.request.request_id}: replayed with {got} tokens, not {one.num_generated}"
            )
        return _work(one, got, output.num_cached_tokens or 0)

    def _stat_loggers(self) -> list[Any] | None:
        """vLLM asks each class for an object; this one adds to `_steps`, which `reset` replaces."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        engine = self

        class StepLogger(StatLoggerBase):  # type: ignore[misc] # vLLM ships no types
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(
                self,
                scheduler_stats: Any,
                iteration_stats: Any,
                mm_cache_stats: Any = None,
                engine_idx: int = 0,
            ) -> None:
                _add_step(engine._steps, scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                pass

        return [StepLogger]


def _add_step(steps: StepFigures, scheduler: Any, iteration: Any) -> None:
    if scheduler is not None:
        steps.num_steps += 1
        steps.num_running += scheduler.num_running_reqs
        steps.num_waiting += scheduler.num_waiting_reqs
        steps.peak_kv_usage = max(steps.peak_kv_usage, scheduler.kv_cache_usage)
    if iteration is not None:
        steps.num_preempted += iteration.num_preempted_reqs
        steps.queue_seconds += [one.queued_time for one in iteration.finished_requests]
