"""Step 4. A training step here against the CPU, float32 then bfloat16; packed against padded."""

from pathlib import Path
from typing import Any

import torch

from stargate.types import TrainResult
from tests.gpu.steps.common import (
    Step,
    make_examples,
    model_config,
    run_step,
    save_random,
    train_alone,
    trainer_config,
    trainer_spec,
)

# How far a loss (nats per token), a gradient norm (as a share) and the saved update (as a share of
# the other's) may be from the CPU's.
_LIMITS = {"float32": (1e-3, 1e-3, 0.05), "bfloat16": (0.05, 0.05, 0.2)}


def _update(start: Path, output: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    before, after = (load_file(folder / "model.safetensors") for folder in (start, output))
    return torch.cat([(after[n].float() - before[n].float()).flatten() for n in sorted(before)])


def check(step: Step) -> None:
    shape = model_config("llama-100m", step.small, num_hidden_layers=2)
    start = save_random(step.folder / "m0", shape, "cpu")
    examples = make_examples(4, 96, shape.vocab_size)

    def train(device: str, **changes: Any) -> tuple[TrainResult, torch.Tensor]:
        there = Step(device, step.small, step.folder)
        output = step.folder / f"{device}-{'-'.join(map(str, changes.values()))}"
        result = train_alone(
            trainer_spec(there, start, trainer_config(**changes)), examples, output
        )
        return result, _update(start, output)

    def compare(name: str, one: Any, other: Any, limits: tuple[float, float, float]) -> None:
        (result, update), (reference, expected) = one, other
        gaps = (
            abs(result.losses[0] - reference.losses[0]),
            abs(result.grad_norms[0] / reference.grad_norms[0] - 1),
            abs(float((update @ expected) / (expected @ expected)) - 1),
        )
        parts = ("loss", "grad_norm", "saved_update")
        step.figures[name] = {p: round(gap, 6) for p, gap in zip(parts, gaps, strict=True)}
        for part, gap, limit in zip(parts, gaps, limits, strict=True):
            step.require(gap < limit, f"{name}: {part} is {gap:.5f} off, {limit} at most")

    for dtype, limits in _LIMITS.items():
        on_cpu = train("cpu", dtype=dtype)
        here = on_cpu if step.device == "cpu" else train(step.device, dtype=dtype)
        compare(f"{dtype}_against_the_cpu", here, on_cpu, limits)
        padded = train(step.device, dtype=dtype, packing=False)
        compare(f"{dtype}_packed_against_padded", here, padded, limits)


if __name__ == "__main__":
    run_step("agreement", check)
