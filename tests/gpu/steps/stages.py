"""Step 2. Three training stages each of ZeRO-2 and ZeRO-3: memory returns to where it began."""

import asyncio
import shutil

import torch

from stargate.actors.training.rank import TrainerRank
from tests.gpu.steps.common import (
    Step,
    alive_bytes,
    make_examples,
    model_config,
    run_step,
    save_random,
    trainer_config,
    trainer_spec,
)

_MIB = 2**20
# What libraries keep of their first use (workspaces), and what a further stage may add.
_KEPT, _GROWTH = 512 * _MIB, 16 * _MIB


def _held(device: str) -> tuple[int, int]:
    """Bytes allocated and reserved; on a CPU those of live tensors, twice."""
    if device == "cpu":
        return (alive_bytes(),) * 2
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def check(step: Step) -> None:
    shape = model_config("llama-1b", step.small)
    start = save_random(step.folder / "m0", shape, step.device)
    examples = make_examples(4, 256, shape.vocab_size)
    for stage in (2, 3):
        rank = TrainerRank(trainer_spec(step, start, trainer_config(zero_stage=stage)))
        rank.start()
        seen = [_held(step.device)]
        for _ in range(3):
            output = step.folder / "m1"
            asyncio.run(rank.train(examples, str(start), str(output), 1))
            shutil.rmtree(output)
            seen.append(_held(step.device))
        kinds = zip(("allocated", "reserved"), zip(*seen, strict=True), strict=True)
        for kind, (before, first, _, last) in kinds:
            name = f"zero{stage}_{kind}_mib"
            step.figures[name] = [round(count / _MIB, 1) for count in (before, first, last)]
            step.require(last - before < _KEPT, f"{name}: three stages left memory behind")
            step.require(last - first < _GROWTH, f"{name}: it grows from stage to stage")
    step.figures["parameters"] = sum(p.numel() for p in _parameters(shape))


def _parameters(shape: object) -> list[torch.nn.Parameter]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return list(AutoModelForCausalLM.from_config(shape).parameters())


if __name__ == "__main__":
    run_step("stages", check)
