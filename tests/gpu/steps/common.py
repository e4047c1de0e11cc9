"""What the steps of bare_machine.sh share: options, random models and texts, one JSON line each.

They need torch, transformers, DeepSpeed and pydantic; no pytest, no vLLM, no Ray, no network.
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import TrainerConfig
from stargate.errors import one_line
from stargate.resources.machine import free_port
from stargate.types import TrainingExample, TrainResult

# Model class, hidden, intermediate, layers, heads, key heads, vocabulary, tied embeddings.
SHAPES: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "llama-100m": ("llama", 768, 2048, 10, 12, 4, 32_000, True),
    "llama-1b": ("llama", 2048, 5632, 20, 32, 8, 32_000, False),
    "qwen-1.5b": ("qwen2", 1536, 8960, 28, 12, 2, 151_936, True),
    "mistral-7b": ("mistral", 4096, 14_336, 32, 32, 8, 32_768, False),
}
BACKENDS = "tests.gpu.steps.backends:"  # of which a trainer's config names one
DIES_AT = "STARGATE_TEST_DIES_AT"  # the optimizer step in which a trainer's process is killed
_SMALL = (64, 128, 2, 4, 2, 512)  # hidden to vocabulary, in place of any of them


@dataclass
class Step:
    """One step: what it was asked for, what it found."""

    device: str
    small: bool
    folder: Path
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def require(self, holds: bool, problem: str) -> None:
        """Notes what is wrong unless `holds`; the step goes on, and fails at its end."""
        if not holds:
            self.problems.append(problem)


def run_step(name: str, check: Callable[[Step], None]) -> None:
    """Runs a step as the command line asks, prints its line, and exits with 1 if it failed."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes: a dry run")
    options = parser.parse_args()
    # Libraries print, and so do other processes: the line stands alone on the standard output.
    own_line = os.dup(1)
    os.dup2(2, 1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stargate-gpu-") as folder:
        step = Step(options.device, options.small, Path(folder))
        try:
            check(step)
        except Exception as error:  # a step that fails is one line, too; the rest goes to stderr
            traceback.print_exc()
            step.problems.append(f"{type(error).__name__}: {one_line(error)}")
    on_gpu = torch.cuda.get_device_name(0) if step.device == "cuda" and gpu_memory() else None
    line = {
        "step": name,
        "ok": not step.problems,
        "device": step.device,
        "gpu": on_gpu,
        "small": step.small,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 1),
        **step.figures,
        "problems": step.problems,
    }
    os.write(own_line, (json.dumps(line) + "\n").encode())
    sys.exit(0 if not step.problems else 1)


def gpu_memory() -> int:
    """Bytes of the GPU; 0 without one."""
    return torch.cuda.mem_get_info(0)[1] if torch.cuda.is_available() else 0


def model_config(shape: str, small: bool, **changes: Any) -> Any:
    """The config of a random model of this shape."""
    from transformers import AutoConfig

    kind, *sizes, tied = SHAPES[shape]
    hidden, intermediate, layers, heads, key_heads, vocabulary = _SMALL if small else sizes
    settings = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192,
        # Large enough in a tiny model that log-probs differ by nats, not by rounding.
        "initializer_range": 0.2 if small else 0.02,
        "sliding_window": None,
    }
    return AutoConfig.for_model(kind, **{**settings, **changes})


def save_random(folder: Path, config: Any, device: str) -> Path:
    """A model folder with random bfloat16 weights, the same ones for the same kind of device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return folder


def random_ids(count: int, vocabulary: int, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(3, vocabulary) for _ in range(count))


def make_examples(count: int, length: int, vocabulary: int) -> list[TrainingExample]:
    """Of up to `length` tokens; the second half of each is learned."""
    lengths = [length - length // 3 * (number % 3 > 0) - number % 7 for number in range(count)]
    return [
        TrainingExample(
            f"p{number:03}",
            f"d{number:03}",
            random_ids(size, vocabulary, number),
            (0.0,) * (size // 2) + (1.0,) * (size - size // 2),
            "",
        )
        for number, size in enumerate(lengths)
    ]


def trainer_config(**changes: Any) -> TrainerConfig:
    settings: dict[str, Any] = {
        "batch_size": 4,
        "micro_batch_size": 4,
        "validation_fraction": 0.0,
        "learning_rate": 1e-3,
        "warmup_fraction": 0.0,
    }
    return TrainerConfig(**{**settings, **changes})


def trainer_spec(step: Step, start: Path, config: TrainerConfig) -> TrainerSpec:
    """A trainer of one rank. Its log becomes part of what the step prints to stderr."""
    device: Any = step.device
    return TrainerSpec(str(start), config, device=device, master_port=free_port(), num_threads=2)


def train_alone(
    spec: TrainerSpec,
    examples: Sequence[TrainingExample],
    output: Path,
    checkpoint_dir: Path | None = None,
) -> TrainResult:
    """One training stage in a process of its own. Raises RuntimeError if that dies."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    kept = None if checkpoint_dir is None else str(checkpoint_dir)
    process = context.Process(target=_train, args=(theirs, spec, list(examples), str(output), kept))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the trainer's process ended with {process.exitcode}") from None
    process.join()
    if isinstance(answer, Exception):
        raise answer
    found: TrainResult = answer
    return found


def _train(
    pipe: Any, spec: TrainerSpec, examples: list[TrainingExample], output: str, kept: str | None
) -> None:
    rank = TrainerRank(spec)
    try:
        rank.start()
        pipe.send(asyncio.run(rank.train(examples, spec.base_model_dir, output, 1, kept)))
    except Exception as error:  # who asked is the one to see it
        pipe.send(error)
    rank.shutdown()


def alive_bytes() -> int:
    """Of all tensors of this process that Python can see."""
    gc.collect()
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor) and found.device.type != "meta":
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
