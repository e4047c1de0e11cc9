"""SIMULATED engines, scorer and trainer for `stargate bench scale`: no model runs in any of them.

    requests -> a queue -> at most max_num_seqs at once -> one token each per step -> ended texts
    a step lasts num_running / curve(num_running), plus the prefill of what it admits

They answer through the methods of the real actors, at the times that a measured curve gives, with
texts cut from a given stream of token ids. Everything around them is the real thing.
"""

import asyncio
import heapq
import os
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any
from zlib import crc32

from stargate.actors.rpc.batched_calls import BatchedServer, CallBatch, Delivery
from stargate.actors.rpc.wire import Records
from stargate.actors.training.rank import TrainProgress
from stargate.types import (
    GenerateRequest,
    Generation,
    ScoreRequest,
    ScoreResult,
    StopReason,
    TrainingExample,
    TrainResult,
)

# Different texts per length limit; a request's seed chooses one.
_NUM_TEXTS = 512
# Sessions and first prompts whose cached tokens are remembered.
_MAX_CACHED = 8192


@dataclass(frozen=True)
class Curve:
    """How fast one engine is: generated tokens/s by requests running, and prefilled tokens/s.

    Between two points the time of a step grows linearly; beyond the last one, as between the last
    two.
    """

    source: str
    tokens_per_s: tuple[tuple[int, float], ...]
    prefill_tokens_per_s: float
    max_num_seqs: int
    push_seconds: float
    block_size: int = 32

    def step_seconds(self, num_running: int) -> float:
        """Seconds of one step, in which each running request gets one token."""
        points = [(n, n / rate) for n, rate in self.tokens_per_s]
        place = bisect_left(points, (num_running, 0.0))
        low = min(max(place - 1, 0), len(points) - 2)
        (n0, s0), (n1, s1) = points[low], points[low + 1]
        return max(s0 + (s1 - s0) * (num_running - n0) / (n1 - n0), points[0][1])


CURVES = {
    "cpu": Curve(
        "measured in this project: vLLM 0.32, SmolLM2-135M, bfloat16, one engine on one core, 47 / "
        "405 / 600 generated tokens/s at 1 / 16 / 64 requests; prefill: the bare forward pass on "
        "one core; weight push: the middle of 0.26-0.42 s",
        ((1, 47.0), (16, 405.0), (64, 600.0)),
        prefill_tokens_per_s=1080.0,
        max_num_seqs=64,
        push_seconds=0.31,
    ),
    "fast": Curve(
        "assumed, of the order of public figures for a 7B model on one H100 (docs/scaling.md)",
        ((1, 130.0), (64, 5500.0), (256, 12500.0)),
        prefill_tokens_per_s=30_000.0,
        max_num_seqs=256,
        push_seconds=1.0,
        block_size=16,
    ),
    "limit": Curve(
        "assumed, faster than the orchestrator: 20 ms a step whatever runs, prefill for nothing",
        ((1, 50.0), (256, 12800.0)),
        prefill_tokens_per_s=1e9,
        max_num_seqs=256,
        push_seconds=0.0,
    ),
}


# max_new_tokens -> texts with their token ids, decoded beforehand: a decoder would cost time that a
# real engine has elsewhere.
Texts = Mapping[int, Sequence[tuple[str, tuple[int, ...]]]]


def make_texts(tokenizer: Any, corpus: str, limits: Sequence[int]) -> Texts:
    """Real text in pieces whose lengths are uniform between half of a limit and the limit, the end
    token included (an assumption of the simulation).
    """
    stream = tokenizer.backend_tokenizer.encode(corpus, add_special_tokens=False).ids
    random = Random(0)
    variants = {}
    for limit in dict.fromkeys(limits):
        texts = []
        for _ in range(_NUM_TEXTS):
            length = random.randint(max(1, limit // 2), max(1, limit - 1))
            start = random.randrange(len(stream) - length)
            ids = stream[start : start + length]
            texts.append((tokenizer.decode(ids), (*ids, tokenizer.eos_token_id)))
        variants[limit] = texts
    return variants


@dataclass(frozen=True, slots=True)
class _Job:
    request: GenerateRequest
    text: str
    token_ids: tuple[int, ...]
    num_cached: int
    ended: "asyncio.Future[Generation]"


class SimulatedEngine:
    """One engine whose time is kept by a curve. Its clock does not slip when the process is late:
    a real engine on a machine of its own would not wait either.
    """

    def __init__(self, curve: Curve, texts: Texts) -> None:
        self._curve = curve
        self._steps = [curve.step_seconds(n) for n in range(1, curve.max_num_seqs + 1)]
        self._texts = texts
        self.version = 0
        self._queue: deque[_Job] = deque()
        self._running: list[tuple[int, int, _Job]] = []  # heap by the step in which it ends
        self._step = 0
        self._admitted = 0
        self._next_step: float | None = None  # loop time; None: idle
        self._cached: OrderedDict[int | str, int] = OrderedDict()
        self.server = BatchedServer(self.generate)
        self.busy_seconds = 0.0
        self.seat_seconds = 0.0

    def generate(self, request: GenerateRequest) -> "asyncio.Future[Generation]":
        """A text of the source, when the curve says that it has ended."""
        loop = asyncio.get_running_loop()
        texts = self._texts[request.sampling.max_new_tokens]
        text, token_ids = texts[request.sampling.seed % len(texts)]
        job = _Job(request, text, token_ids, self._num_cached(request), loop.create_future())
        self._queue.append(job)
        if self._next_step is None:
            self._next_step = loop.time()
            loop.call_soon(self._tick)
        return job.ended

    async def load_weights(self, weights: str, version: int) -> dict[str, float]:
        """Takes the time of a push."""
        await asyncio.sleep(self._curve.push_seconds)
        self.version = version
        self._cached.clear()
        return {"simulated": self._curve.push_seconds}

    def _tick(self) -> None:
        """Does all steps that are due, then sleeps until the next."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._next_step is not None and self._next_step <= now:
            self._end_step()
        if self._next_step is not None:
            loop.call_at(self._next_step, self._tick)

    def _end_step(self) -> None:
        assert self._next_step is not None
        self._step += 1
        while self._running and self._running[0][0] <= self._step:
            job = heapq.heappop(self._running)[2]
            if not job.ended.done():  # else it was cancelled
                text = job.text, job.token_ids, StopReason.STOP, self.version
                lengths = len(job.request.prompt_ids), job.num_cached
                job.ended.set_result(Generation(*text, *lengths))
        num_prefilled = 0
        while self._queue and len(self._running) < self._curve.max_num_seqs:
            job = self._queue.popleft()
            if job.ended.done():
                continue
            num_prefilled += len(job.request.prompt_ids) - job.num_cached
            self._admitted += 1
            heapq.heappush(self._running, (self._step + len(job.token_ids), self._admitted, job))
        if not self._running:
            self._next_step = None
            return
        seconds = self._steps[len(self._running) - 1]
        seconds += num_prefilled / self._curve.prefill_tokens_per_s
        self.busy_seconds += seconds
        self.seat_seconds += seconds * len(self._running)
        self._next_step += seconds

    def _num_cached(self, request: GenerateRequest) -> int:
        """Tokens in whole blocks that this session, or the same first prompt, has left here."""
        ids = request.prompt_ids
        first = hash(ids)
        known = max(self._cached.get(request.session, 0), self._cached.get(first, 0))
        for key in (request.session, first):
            self._cached[key] = len(ids)
            self._cached.move_to_end(key)
        while len(self._cached) > _MAX_CACHED:
            self._cached.popitem(last=False)
        block = self._curve.block_size
        return min(known, len(ids) - 1) // block * block


class _Actor:
    """What the simulated actors have in common."""

    num_calls_so_far = 0

    async def start(self) -> int:
        return os.getpid()

    async def num_calls(self) -> int:
        return self.num_calls_so_far


class SimulatedEngines(_Actor):
    """Several simulated engines in one process: each is called for itself, as if it had its own."""

    def __init__(self, curve: Curve, texts: Texts, count: int) -> None:
        self._engines = [SimulatedEngine(curve, texts) for _ in range(count)]

    async def exchange(
        self, number: int, batch: CallBatch[GenerateRequest]
    ) -> Delivery[Generation]:
        self.num_calls_so_far += 1
        return await self._engines[number].server.exchange(batch)

    async def load_weights(self, number: int, weights: str, version: int) -> dict[str, float]:
        return await self._engines[number].load_weights(weights, version)

    async def reported_version(self, number: int) -> int:
        return self._engines[number].version

    async def loads(self) -> list[tuple[float, float]]:
        """Of each engine: seconds busy, and the mean number of requests running meanwhile."""
        return [(e.busy_seconds, e.seat_seconds / max(e.busy_seconds, 1e-9)) for e in self._engines]


class EngineHandle:
    """One engine of a SimulatedEngines actor, with the methods of an actor handle. It pickles."""

    def __init__(self, host: Any, number: int) -> None:
        self._host = host
        self._number = number

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):  # unpickling asks for some before there is a host
            raise AttributeError(method)
        call = getattr(self._host, method).remote
        return SimpleNamespace(remote=partial(call, self._number))


class SimulatedScorer(_Actor):
    """Scores by a checksum, `tokens_per_s` at a time."""

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s
        self._free_at = 0.0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """One batch after the other, each as long as its tokens take."""
        self.num_calls_so_far += 1
        num_tokens = sum(len(r.context_ids) + sum(map(len, r.golds)) for r in requests)
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + num_tokens / self._tokens_per_s
        await asyncio.sleep(self._free_at - now)
        return Records(
            ScoreResult(
                r.key, tuple((-1.0 - crc32(r.key.encode()) / 2**32,) * len(g) for g in r.golds)
            )
            for r in requests
        )


class SimulatedTrainer(_Actor):
    """One trainer rank that counts its examples and trains nothing."""

    _number = 0

    async def progress(self) -> TrainProgress:
        return TrainProgress(number=self._number, steps=1, total_steps=1)

    async def train(
        self, examples: Sequence[TrainingExample], start: str, output: str, *version: int | str
    ) -> TrainResult:
        self._number += 1
        return TrainResult(
            losses=(),
            grad_norms=(),
            learning_rates=(),
            validation_loss=None,
            num_examples=len(examples),
            num_tokens=sum(len(example.input_ids) for example in examples),
            num_loss_tokens=sum(example.num_loss_tokens for example in examples),
            seconds=0.0,
            model_dir=output,
        )
