"""An engine that keeps what it was asked, so that the same work can be done again.

    pipeline -> generate, each kept as Served -> record
    Served -> replay: the same prompts and output lengths, as independent requests, all at once

It also counts what vLLM reports at every step: how full the batch was, how long requests waited.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stargate.actors.engines.engine import Engine
from stargate.actors.rpc.batched_calls import CallBatch, Delivery
from stargate.benchmarks.rollout_figures import EngineRecord, Served, StepFigures, Work
from stargate.errors import EngineError
from stargate.types import GenerateRequest, Generation


class MeasuredEngine(Engine):
    """An Engine that keeps records. Every other part of it is the one that a run uses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._record = EngineRecord()

    async def generate(self, request: GenerateRequest) -> Generation:
        """Generates one text, and keeps the request with its output length."""
        submitted = time.perf_counter()
        generation = await super().generate(request)
        lengths = len(generation.token_ids), generation.num_cached_tokens
        self._record.served.append(Served(request, *lengths, submitted, time.perf_counter()))
        return generation

    async def exchange(self, batch: CallBatch[GenerateRequest]) -> Delivery[Generation]:
        """Counts the remote calls that bring requests and fetch texts."""
        self._record.num_calls += 1
        return await super().exchange(batch)

    async def reset(self) -> None:
        """Forgets prefix cache, records and figures, so that passes start equal."""
        if not await self._running().reset_prefix_cache():
            raise EngineError(f"{self.spec.role} engine: the prefix cache could not be reset")
        self._record = EngineRecord(busy_seconds=-(await self.stats()).busy_seconds)

    async def record(self) -> EngineRecord:
        """All that was done since `reset`; the requests in the order in which they came."""
        busy = self._record.busy_seconds + (await self.stats()).busy_seconds
        served = sorted(self._record.served, key=lambda one: one.submitted)
        return replace(self._record, served=served, busy_seconds=busy)

    async def replay(self, requests: Sequence[Served]) -> Work:
        """Serves the same prompts with the same output lengths, all submitted at once."""
        llm = self._running()
        return sum(await asyncio.gather(*(self._again(llm, one) for one in requests)), Work())

    async def _again(self, llm: Any, one: Served) -> Work:
        output = await self._final_output(
            llm, one.request, max_tokens=one.num_generated, ignore_eos=True, stop_token_ids=[]
        )
        got = len(output.outputs[0].token_ids)
        if got != one.num_generated:
            raise EngineError(
                f"{one.request.request_id}: replayed with {got} tokens, not {one.num_generated}"
            )
        return Work.of(one.request, got, output.num_cached_tokens or 0)

    def _stat_loggers(self) -> list[Any] | None:
        """vLLM asks each class for an object; this one adds to the record of now."""
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
                _add_step(engine._record.steps, scheduler_stats, iteration_stats)

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
