"""The sides of `stargate bench score`, each in processes of its own (sides.py).

A process on CPUs is pinned to its core and computes with one thread. One that is ready says so,
then answers work with log-probs and seconds.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from stargate.actors.process.heap import ONE_HEAP, heap_environment
from stargate.benchmarks.score_work import PairRequests, Stretch, stretches, texts_of
from stargate.benchmarks.sides import SideProcess
from stargate.config.run import EngineConfig, ScorerConfig

Side = Literal["scorer", "prompt_logprobs", "forward", "reference"]
Dtype = Literal["bfloat16", "float32"]
# Log-probs of each gold (G,), in the order of the requests and of their golds.
Logprobs = list[tuple[float, ...]]
# Tokens of a batch of the bare forward pass on a CPU: with 4,096 it is a quarter slower.
_FORWARD_CPU_TOKENS = 1024


@dataclass(frozen=True)
class Job:
    """What a side is. `core`: which CPU core it has for itself; None on a GPU."""

    side: Side
    model_dir: str
    dtype: Dtype
    max_batch_tokens: int
    core: int | None
    log_file: str

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.core is None else "cpu"


@dataclass(frozen=True)
class Answer:
    """Seconds of the work, and what came out (nothing from a bare forward pass)."""

    seconds: float
    logprobs: Logprobs


Score = Callable[[list[PairRequests]], Answer]


def start_side(job: Job) -> SideProcess:
    """The process of a side, which is not waited for."""
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    if job.core is not None:
        environment["OMP_NUM_THREADS"] = "1"
        environment["DS_ACCELERATOR"] = "cpu"  # transformers imports an installed DeepSpeed
    if job.side == "scorer":  # as a run starts one; the other sides as they come
        environment |= heap_environment(ONE_HEAP, job.device)
    name, place = f"bench score: {job.side}", f"{__name__}:play"
    return SideProcess(name, place, job, job.log_file, environment)


def play(job: Job, pipe: Connection) -> None:
    """A side's whole life."""
    with _SIDES[job.side](job) as score:
        pipe.send("ready")
        while True:
            pipe.send(score(pipe.recv()))


def _pin(job: Job) -> None:
    if job.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job.core})


@contextmanager
def _scorer(job: Job) -> Iterator[Score]:
    """Our scorer, asked as a run asks it: one call per pair, all at once."""
    from stargate.actors.scoring.scorer import Scorer, ScorerSpec

    _pin(job)
    config = ScorerConfig(dtype=job.dtype, max_batch_tokens=job.max_batch_tokens)
    scorer = Scorer(ScorerSpec(job.model_dir, config, 1, job.device))
    scorer.start()

    async def all_at_once(work: list[PairRequests]) -> Logprobs:
        results = await asyncio.gather(*(scorer.score(requests) for requests in work))
        return [gold for of_pair in results for result in of_pair for gold in result.token_logprobs]

    def score(work: list[PairRequests]) -> Answer:
        started = time.perf_counter()
        logprobs = asyncio.run(all_at_once(work))
        return Answer(time.perf_counter() - started, logprobs)

    try:
        yield score
    finally:
        scorer.shutdown()


@contextmanager
def _prompt_logprobs(job: Job) -> Iterator[Score]:
    """vLLM, given every context with its gold as a prompt, all at once."""
    from stargate.actors.engines.spec import EngineSpec, engine_arguments, engine_environment
    from stargate.actors.engines.startup import child_processes, end_processes
    from stargate.resources.models import context_length

    length = min(2048, context_length(Path(job.model_dir)))
    config = EngineConfig(dtype=job.dtype, max_model_len=length, cpu_kv_cache_gb=0.3)
    spec = EngineSpec(
        "prompt_logprobs",
        job.model_dir,
        config,
        device=job.device,
        cpu_cores=None if job.core is None else str(job.core),
    )
    os.environ.update(engine_environment(spec))
    arguments = engine_arguments(spec)
    # Parts of ours that this engine has no use for.
    for name in ("logits_processors", "logprobs_mode", "weight_transfer_config"):
        arguments.pop(name, None)
    if job.device == "cuda":
        arguments["gpu_memory_utilization"] = 0.4  # the scorer needs the rest
    before = child_processes()
    from vllm import LLM, SamplingParams
    from vllm.inputs import tokens_input

    llm = LLM(**arguments)
    parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)

    def score(work: list[PairRequests]) -> Answer:
        texts = texts_of(work)
        prompts = [tokens_input([*text.context, *text.gold]) for text in texts]
        started = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        found = []
        for text, output in zip(texts, outputs, strict=True):
            rows = output.prompt_logprobs[len(text.context) :]
            found.append(
                tuple(row[token].logprob for row, token in zip(rows, text.gold, strict=True))
            )
        return Answer(seconds, found)

    try:
        yield score
    finally:
        llm.llm_engine.engine_core.shutdown()
        end_processes(child_processes() - before)


def _load(job: Job, dtype: Dtype) -> Any:
    """Hugging Face's model, on one thread of the job's core or on the GPU."""
    import torch

    from stargate.actors.modeling.model import load_model

    _pin(job)
    model = load_model(job.model_dir, getattr(torch, dtype), job.device, False)
    if job.core is not None:
        torch.set_num_threads(1)
    return model


@contextmanager
def _forward(job: Job) -> Iterator[Score]:
    """A Hugging Face forward pass of the unique tokens, sorted by length, and nothing else."""
    import torch

    model = _load(job, job.dtype)
    on_cpu = job.core is not None
    max_tokens = min(job.max_batch_tokens, _FORWARD_CPU_TOKENS) if on_cpu else job.max_batch_tokens

    def score(work: list[PairRequests]) -> Answer:
        batches = by_length(stretches(work), max_tokens)
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                width = len(batch[0].ids)
                ids = [[*one.ids, *([0] * (width - len(one.ids)))] for one in batch]
                hidden = model.base_model(
                    input_ids=torch.tensor(ids, device=job.device), use_cache=False
                ).last_hidden_state
                chosen = [
                    hidden[row, len(one.ids) - one.num_places : len(one.ids)]
                    for row, one in enumerate(batch)
                ]
                logits = model.get_output_embeddings()(torch.cat(chosen))
                logits[-1, -1].item()  # waits for a GPU
        return Answer(time.perf_counter() - started, [])

    yield score


def by_length(sequences: Sequence[Stretch], max_tokens: int) -> list[list[Stretch]]:
    """Batches of at most `max_tokens` tokens with padding, longest first."""
    batches: list[list[Stretch]] = []
    for one in sorted(sequences, key=lambda one: -len(one.ids)):
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


@contextmanager
def _reference(job: Job) -> Iterator[Score]:
    """Full logits in float32, one sequence at a time: what every side should come to."""
    import torch

    model = _load(job, "float32")

    def score(work: list[PairRequests]) -> Answer:
        started = time.perf_counter()
        found = []
        with torch.inference_mode():
            for text in texts_of(work):
                ids = torch.tensor([[*text.context, *text.gold]], device=job.device)
                logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
                first = len(text.context) - 1
                found.append(tuple(float(logprobs[first + k, t]) for k, t in enumerate(text.gold)))
        return Answer(time.perf_counter() - started, found)

    yield score


_SIDES = {
    "scorer": _scorer,
    "prompt_logprobs": _prompt_logprobs,
    "forward": _forward,
    "reference": _reference,
}
