"""The sides of `stargate bench score`, each in processes of its own, asked one after another.

    parent                        child: import, load, warm up
      wait until ready       <--  "ready"
      ask(work)              -->  the work, timed  --> Answer

A child on CPUs is pinned to its core and computes with one thread. While one side works the others
wait in a pipe.
"""

import asyncio
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from stargate.actors.runtime.heap import ONE_HEAP, heap_environment
from stargate.benchmarks.score_work import PairRequests, Stretch, stretches, texts_of
from stargate.config.run import EngineConfig, ScorerConfig
from stargate.errors import EngineError

Side = Literal["scorer", "prompt_logprobs", "forward", "reference"]
Dtype = Literal["bfloat16", "float32"]
# Log-probs of each gold (G,), in the order of the requests and of their golds.
Logprobs = list[tuple[float, ...]]
# Seconds within which a side must answer: starting an engine, or minutes of work on a CPU.
_DEADLINE_S = 900.0
_STOP_S = 60.0
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
    trust_remote_code: bool = False

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.core is None else "cpu"


@dataclass(frozen=True)
class Answer:
    """Seconds of the work, and what came out (nothing from a bare forward pass)."""

    seconds: float
    logprobs: Logprobs


class Worker:
    """One side in its process. Close it whatever happens."""

    def __init__(self, job: Job) -> None:
        self.job = job
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Not a daemon: vLLM starts processes of its own.
        self._process = context.Process(target=_serve, args=(job, theirs))
        # As a run starts a scorer; the other sides as they come.
        environment = heap_environment(ONE_HEAP, job.device) if job.side == "scorer" else {}
        os.environ.update(environment)
        try:
            self._process.start()
        finally:
            for name in environment:
                del os.environ[name]
        theirs.close()

    def ready(self) -> None:
        """Waits until it is set up; the first thing to do."""
        self._answer()

    def send(self, work: Sequence[PairRequests]) -> None:
        """Gives it work; `answer` waits for the result."""
        self._pipe.send(list(work))

    def answer(self) -> Answer:
        found = self._answer()
        assert isinstance(found, Answer)
        return found

    def ask(self, work: Sequence[PairRequests]) -> Answer:
        self.send(work)
        return self.answer()

    def close(self) -> None:
        """Ends the process, and waits for it: an engine needs some seconds."""
        self._pipe.close()
        self._process.join(timeout=_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        if not self._pipe.poll(_DEADLINE_S):
            raise EngineError(
                f"bench score: {self.job.side} has not answered in {_DEADLINE_S:.0f} s"
            )
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise EngineError(
                f"bench score: the process of {self.job.side} died; see {self.job.log_file}"
            ) from error
        if isinstance(answer, Exception):
            raise EngineError(f"bench score: {self.job.side} failed: {answer}")
        return answer


def _serve(job: Job, pipe: Connection) -> None:
    """The child's whole life."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if job.core is not None:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["DS_ACCELERATOR"] = "cpu"  # transformers imports an installed DeepSpeed
    from stargate.actors.training.modeling import redirect_output

    redirect_output(job.log_file)
    try:
        score, close = _SIDES[job.side](job)
    except Exception as error:  # whatever it is, the parent is the one to hear it
        traceback.print_exc()
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        return
    try:
        pipe.send("ready")
        while True:
            work = pipe.recv()
            try:
                pipe.send(score(work))
            except Exception as error:
                traceback.print_exc()
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    except EOFError:
        pass  # the parent has closed its end: that is how it ends this
    finally:
        close()


_Started = tuple[Callable[[list[PairRequests]], Answer], Callable[[], None]]


def _pin(job: Job) -> None:
    if job.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job.core})


def _scorer(job: Job) -> _Started:
    """Our scorer, asked as a run asks it: one call per pair, all at once."""
    from stargate.actors.scoring.scorer import Scorer, ScorerSpec

    _pin(job)
    config = ScorerConfig(dtype=job.dtype, max_batch_tokens=job.max_batch_tokens)
    scorer = Scorer(
        ScorerSpec(
            job.model_dir,
            config,
            num_threads=1,
            device=job.device,
            trust_remote_code=job.trust_remote_code,
        )
    )
    scorer.start()

    async def all_at_once(work: list[PairRequests]) -> Logprobs:
        results = await asyncio.gather(*(scorer.score(requests) for requests in work))
        return [gold for of_pair in results for result in of_pair for gold in result.token_logprobs]

    def score(work: list[PairRequests]) -> Answer:
        started = time.perf_counter()
        logprobs = asyncio.run(all_at_once(work))
        return Answer(time.perf_counter() - started, logprobs)

    return score, scorer.shutdown


def _prompt_logprobs(job: Job) -> _Started:
    """vLLM, given every context with its gold as a prompt, all at once."""
    from stargate.actors.engines.core_process import child_processes, end_processes
    from stargate.actors.engines.spec import EngineSpec, engine_arguments, engine_environment
    from stargate.resources.models import context_length

    length = min(2048, context_length(Path(job.model_dir)))
    config = EngineConfig(dtype=job.dtype, max_model_len=length, cpu_kv_cache_gb=0.3)
    spec = EngineSpec(
        "prompt_logprobs",
        job.model_dir,
        config,
        device=job.device,
        cpu_cores=None if job.core is None else str(job.core),
        trust_remote_code=job.trust_remote_code,
    )
    os.environ.update(engine_environment(spec))
    arguments = engine_arguments(spec)
    # Parts of ours that this engine has no use for.
    for name in ("logits_processors", "weight_transfer_config"):
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

    def close() -> None:
        llm.llm_engine.engine_core.shutdown()
        end_processes(child_processes() - before)

    return score, close


def _forward(job: Job) -> _Started:
    """A Hugging Face forward pass of the unique tokens, sorted by length, and nothing else."""
    import torch

    from stargate.actors.training.modeling import load_model

    _pin(job)
    dtype = torch.bfloat16 if job.dtype == "bfloat16" else torch.float32
    model = load_model(job.model_dir, dtype, job.device, job.trust_remote_code)
    max_tokens = job.max_batch_tokens
    if job.core is not None:
        torch.set_num_threads(1)
        max_tokens = min(max_tokens, _FORWARD_CPU_TOKENS)

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

    return score, lambda: None


def by_length(sequences: Sequence[Stretch], max_tokens: int) -> list[list[Stretch]]:
    """Batches of at most `max_tokens` tokens with padding, longest first."""
    batches: list[list[Stretch]] = []
    for one in sorted(sequences, key=lambda one: -len(one.ids)):
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


def _reference(job: Job) -> _Started:
    """Full logits in float32, one sequence at a time: what every side should come to."""
    import torch

    from stargate.actors.training.modeling import load_model

    _pin(job)
    model = load_model(job.model_dir, torch.float32, job.device, job.trust_remote_code)
    if job.core is not None:
        torch.set_num_threads(1)

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

    return score, lambda: None


_SIDES: dict[Side, Callable[[Job], _Started]] = {
    "scorer": _scorer,
    "prompt_logprobs": _prompt_logprobs,
    "forward": _forward,
    "reference": _reference,
}
