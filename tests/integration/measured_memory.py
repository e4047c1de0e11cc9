"""What trainer and scorer really allocate on a CPU, by torch's own account of every allocation."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stargate.actors.training.spec import TrainerSpec, rank_environment
from stargate.config.run import ScorerConfig, TrainerConfig
from stargate.records.model_folder import weight_files
from stargate.resources import memory
from stargate.resources.machine import free_port
from stargate.resources.model_shape import folder_shape

# The communication buckets of these trainings: small beside the models, as they are in a run.
_BUCKET_ELEMENTS = 100_000


@dataclass(frozen=True)
class Case:
    """A random Llama, and how it is trained: `texts` of `length` tokens in one micro-batch."""

    texts: int
    length: int
    trainer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> TrainerConfig:
        ranks = self.trainer.get("num_ranks", 1)
        sizes = {"batch_size": self.texts * ranks, "micro_batch_size": self.texts}
        return TrainerConfig(**sizes, max_length=self.length, **self.trainer)


def save_model(folder: Path, dtype: str, **sizes: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=8192, **sizes)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


def in_a_process(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def on_all_ranks(folder: Path, cases: Sequence[Case]) -> list[tuple[float, float]]:
    """(measured, computed) bytes of each case, on the rank that takes most."""
    ranks = cases[0].config.num_ranks
    port = free_port()
    with multiprocessing.get_context("spawn").Pool(ranks) as pool:
        jobs = [pool.apply_async(train, (folder, cases, r, ranks, port)) for r in range(ranks)]
        found = [job.get(timeout=300) for job in jobs]
    return [max(of_case) for of_case in zip(*found, strict=True)]


def train(
    folder: Path, cases: Sequence[Case], rank: int, ranks: int, port: int
) -> list[tuple[float, float]]:
    spec = TrainerSpec("", TrainerConfig(), rank=rank, world_size=ranks, master_port=port)
    os.environ.update(rank_environment(spec))
    memory.BUCKET_ELEMENTS = _BUCKET_ELEMENTS
    from stargate.actors.training.deepspeed_backend import DeepSpeedBackend

    DeepSpeedBackend.join("cpu")
    found = []
    for number, case in enumerate(cases):
        own = folder / f"{ranks}-{number}-{rank}"
        save_model(own, case.config.dtype, **case.model)
        given = TrainerSpec(str(own), case.config, rank, ranks, master_port=port)
        computed = memory.trainer_memory(case.config, folder_shape(own), "cpu")
        needs = computed.needs - computed.parts["process"]
        found.append((_most_in_training(DeepSpeedBackend, given, case), needs))
    DeepSpeedBackend.leave()
    return found


def _most_in_training(backend_class: Any, spec: TrainerSpec, case: Case) -> float:
    """Bytes at the worst moment of two steps of two micro-batches, without those of before."""
    import torch

    from stargate.actors.training.batches import make_batch
    from stargate.types import TrainingExample

    ids = tuple(i % case.model["vocab_size"] for i in range(case.length))
    weights = (0.0, *[1.0] * (case.length - 1))
    examples = [TrainingExample("p", "d", ids, weights, "")] * case.texts

    def step(backend: Any) -> None:
        for last in (False, True):
            batch = make_batch(examples, backend.packed, torch.device("cpu"))
            logprobs = backend.forward(batch, True)
            backend.backward(-logprobs.sum(), last)
            del logprobs, batch
        backend.update(1e-5, lambda norm: None)

    def two_steps() -> None:
        backend = backend_class(spec, spec.base_model_dir)
        assert backend.packed == case.config.packing  # what was computed is what was measured
        step(backend)
        step(backend)
        backend.close()

    return float(most_allocated(two_steps))


def score(folder: Path, config: ScorerConfig, texts: int) -> tuple[float, float]:
    """(measured, computed) bytes of a scorer that scores so many texts at once.

    `folder` has weights of the scorer's dtype: these are pages of its file, not allocated by torch.
    """
    from stargate.actors.scoring.gold_model import GoldModel
    from stargate.types import ScoreRequest

    length = config.batch_tokens("cpu") // texts
    golds = ((1,) * (length - 8),)
    requests = [ScoreRequest(str(n), (n,) * 8, golds) for n in range(texts)]
    most = most_allocated(lambda: GoldModel(str(folder), config, "cpu", False).score(requests))
    computed = memory.scorer_memory(config, folder_shape(folder), "cpu")
    weights = sum(file.stat().st_size for file in weight_files(folder))
    return float(most + weights), computed.needs - computed.parts["process"]


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that `work` has allocated at a time.

    What is freed meanwhile but was allocated before it does not count.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = []
    waiting = list(recorded.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]":
            events.append((event.start_time_ns, event.extra_fields))
    now = most = 0
    present: dict[int, int] = {}
    for _, fields in sorted(events, key=lambda one: one[0]):
        if fields.alloc_size > 0:
            present[fields.ptr] = fields.alloc_size
            now += fields.alloc_size
            most = max(most, now)
        else:
            now -= present.pop(fields.ptr, 0)
    return most
