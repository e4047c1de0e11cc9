"""The scorer: log-probs of golds under the frozen m_0.

    score(requests) --> queue --> worker thread: all that is pending -> micro-batches -> results
    score(requests) -->   (concurrent calls meet here)

The passes themselves are in gold_model.py. Nothing here waits for a fixed batch: a lone request is
scored at once, and what arrives meanwhile makes up the next round.
"""

import asyncio
import concurrent.futures
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stargate.config.run import ScorerConfig
from stargate.errors import DataError, DivergenceError, EngineError, RecordDropped
from stargate.resources.account import complete_account
from stargate.types import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from stargate.actors.scoring.gold_model import GoldModel

_LOG = logging.getLogger(__name__)

# Seconds without a request after which the memory of the last passes is given back: 2 GB, which
# training wants next on a machine where stages take turns.
_REST_AFTER = 5.0


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """All that one scorer needs to start; plain values, so that it travels to any node."""

    model_dir: str
    config: ScorerConfig
    num_threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    log_file: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class ScorerStats:
    """Counts since the start.

    `num_tokens` went through the model, padding aside; a context that several golds share counts
    once. `num_padded_tokens` is the same with padding. `busy_seconds` were spent in passes.
    """

    num_requests: int = 0
    num_golds: int = 0
    num_passes: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    busy_seconds: float = 0.0


class Scorer:
    """Scores golds. Wrapped by `ray.remote` elsewhere; needs no Ray."""

    def __init__(self, spec: ScorerSpec) -> None:
        self._spec = spec
        self._model: GoldModel | None = None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._stats = ScorerStats()
        self._passing = threading.Lock()  # held by who uses or moves the model
        self._asleep = False

    def start(self) -> None:
        """Loads the model and starts the worker. Raises ModelError."""
        if self._worker is not None:
            return
        complete_account()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if self._spec.device == "cpu":
            # transformers imports an installed DeepSpeed, which otherwise looks for a GPU, aloud.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from stargate.actors.process.log_escaping import redirect_output
        from stargate.actors.scoring.gold_model import GoldModel

        redirect_output(self._spec.log_file)
        self._model = GoldModel(
            self._spec.model_dir,
            self._spec.config,
            self._spec.device,
            self._spec.trust_remote_code,
        )
        self._worker = threading.Thread(
            target=self._work, args=(self._model,), name="scorer", daemon=True
        )
        self._worker.start()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Log-probs of each gold's tokens, in nats, in the order of the requests.

        Concurrent calls are merged into common passes. A call with a record that can't be scored is
        refused as a whole, before anything is computed, by a RecordDropped that names the record:
        who wants to go on without it checks lengths first, as algorithm/score_requests.py does.
        Raises DivergenceError if m_0 gives a log-prob that is not finite.
        """
        if self._model is None or self._worker is None:
            raise EngineError("scorer: score() was called before start() or after shutdown()")
        for request in requests:
            check_request(request, self._model.max_length, self._model.num_tokens)
        if not requests:
            return []
        call = _Call(requests)
        self._calls.put(call)
        return await asyncio.wrap_future(call.future)

    async def sleep(self, level: int = 1) -> None:
        """Moves the weights to the host's memory, so that others can use the GPU."""
        await asyncio.to_thread(self._move, "cpu", asleep=True)

    async def wake_up(self) -> bool:
        """Moves them back. One that is awake stays so. True: it can score."""
        await asyncio.to_thread(self._move, self._spec.device, asleep=False)
        return True

    def _move(self, device: str, *, asleep: bool) -> None:
        with self._passing:
            if self._model is None:
                raise EngineError("scorer: it does not run")
            if asleep != self._asleep:
                self._model.move(device)
                self._asleep = asleep

    def stats(self) -> ScorerStats:
        """Counts since the start."""
        return self._stats

    def shutdown(self) -> None:
        """Ends the worker after its present round and frees the model. Can be called twice."""
        if self._worker is None:
            return
        self._calls.put(None)
        self._worker.join()
        self._worker = self._model = None

    def _work(self, model: "GoldModel") -> None:
        model.set_threads(self._spec.num_threads)
        stopping = False
        while not stopping:
            calls, stopping = self._take_pending(model)
            if stopping:
                for call in calls:
                    call.fail(EngineError("scorer: it was shut down before it came to this call"))
            else:
                self._run_round(model, calls)

    def _take_pending(self, model: "GoldModel") -> "tuple[list[_Call], bool]":
        """Waits for a call, then takes all that are there. True: the end was asked for."""
        try:
            taken = [self._calls.get(timeout=_REST_AFTER)]
        except queue.Empty:
            with self._passing:
                model.rest()
            taken = [self._calls.get()]
        while not self._calls.empty():
            taken.append(self._calls.get())
        return [call for call in taken if call is not None], None in taken

    def _run_round(self, model: "GoldModel", calls: "Sequence[_Call]") -> None:
        """Scores the requests of all calls in common passes. An error ends only its own calls."""
        items = [
            _Item(call, place)
            for call in calls
            if call.future.set_running_or_notify_cancel()
            for place in range(len(call.requests))
        ]
        for batch in model.batches([item.request for item in items]):
            waiting = [items[i] for i in batch if not items[i].call.future.done()]
            if waiting:
                self._run_pass(model, waiting)

    def _run_pass(self, model: "GoldModel", items: "Sequence[_Item]") -> None:
        started = time.perf_counter()
        try:
            with self._passing:
                if self._asleep:
                    raise EngineError("scorer: it is asleep")
                scored = model.score([item.request for item in items])
        except Exception as error:  # whatever it is, those who asked must hear it, not this thread
            _LOG.exception("a pass over %d requests failed", len(items))
            for item in items:
                item.call.fail(error)
            return
        # Before the results: whoever has them finds them counted.
        before = self._stats
        self._stats = ScorerStats(
            num_requests=before.num_requests + len(items),
            num_golds=before.num_golds + sum(map(len, scored.logprobs)),
            num_passes=before.num_passes + 1,
            num_tokens=before.num_tokens + scored.num_tokens,
            num_padded_tokens=before.num_padded_tokens + scored.num_padded_tokens,
            busy_seconds=before.busy_seconds + time.perf_counter() - started,
        )
        for item, golds in zip(items, scored.logprobs, strict=True):
            item.finish(golds)


def check_request(request: ScoreRequest, max_length: int, num_tokens: int) -> None:
    """Raises RecordDropped, or DataError for ids that no tokenizer of this model made."""
    if not request.context_ids:
        raise RecordDropped("empty_context", request.key, "there is no token before the gold")
    if not all(request.golds):
        raise RecordDropped("empty_gold", request.key, "a gold has no tokens to score")
    longest = len(request.context_ids) + max(map(len, request.golds), default=0)
    if longest > max_length:
        raise RecordDropped(
            "prompt_too_long",
            request.key,
            f"context and gold have {longest} tokens, the model takes {max_length}",
        )
    largest = max(max(ids) for ids in (request.context_ids, *request.golds))
    if largest >= num_tokens:
        raise DataError(f"{request.key}: token id {largest} is outside the model's {num_tokens}")


class _Call:
    """One call of score(): its requests, and its results as they come in, in any order."""

    def __init__(self, requests: Sequence[ScoreRequest]) -> None:
        self.requests = list(requests)
        self.future: concurrent.futures.Future[list[ScoreResult]] = concurrent.futures.Future()
        self._results: dict[int, ScoreResult] = {}

    def put(self, place: int, result: ScoreResult) -> None:
        self._results[place] = result
        if len(self._results) == len(self.requests) and not self.future.done():
            self.future.set_result([self._results[i] for i in range(len(self.requests))])

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Item:
    """One request of a call."""

    call: _Call
    place: int

    @property
    def request(self) -> ScoreRequest:
        return self.call.requests[self.place]

    def finish(self, golds: tuple[tuple[float, ...], ...]) -> None:
        key = self.request.key
        for number, gold in enumerate(golds):
            if not all(map(math.isfinite, gold)):
                self.call.fail(
                    DivergenceError(f"{key}: gold {number} has a log-prob that is not finite")
                )
        self.call.put(self.place, ScoreResult(key, golds))
