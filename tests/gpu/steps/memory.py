"""Step 5. Mistral-7B's shape: peak memory of a training step against what is computed; the save."""

import json
import shutil

from stargate.resources.memory import trainer_memory
from stargate.resources.model_shape import folder_shape, shape_of
from tests.gpu.steps.common import (
    Step,
    gpu_memory,
    make_examples,
    model_config,
    run_step,
    save_random,
    train_alone,
    trainer_config,
    trainer_spec,
)

_GIB = 2**30
_ROW = 4096  # tokens
# As the computed figures were held against a CPU's allocations (docs/scaling.md).
_TOLERANCE = 0.15


def check(step: Step) -> None:
    row = 128 if step.small else _ROW
    settings = {
        "row_tokens": row,
        "max_length": row // 4,
        "backend": "tests.gpu.steps.backends:Measured",
    }
    shape, layers = model_config("mistral-7b", step.small), 2
    if step.device == "cuda" and not step.small:
        # As many layers as fit without activation checkpointing.
        layers = next(
            n
            for n in range(shape.num_hidden_layers, 0, -1)
            if _needed(trainer_config(**settings), shape.to_dict() | {"num_hidden_layers": n})
            < 0.85 * gpu_memory()
        )
    shape.num_hidden_layers = layers
    start = save_random(step.folder / "m0", shape, step.device)
    step.figures["layers"] = layers
    examples = make_examples(4, row // 4, shape.vocab_size)
    for checkpointing in (False, True):
        config = trainer_config(activation_checkpointing=checkpointing, **settings)
        output = step.folder / f"m1-{checkpointing}"
        train_alone(trainer_spec(step, start, config), examples, output)
        shutil.rmtree(output)
        told = json.loads(output.with_suffix(".json").read_text())
        computed = trainer_memory(config, folder_shape(start), "cuda")
        expected = computed.needs - computed.parts["process"]
        peak = told.pop("peak")
        name = "checkpointed" if checkpointing else "plain"
        step.figures[name] = {
            "computed_gib": round(expected / _GIB, 3),
            "peak_gib": None if peak is None else round(peak / _GIB, 3),
            **told,
        }
        if peak is not None and not step.small:
            off = abs(peak / expected - 1)
            step.require(off < _TOLERANCE, f"{name}: the computed memory is {off:.0%} off")


def _needed(config: object, shape: dict[str, object]) -> float:
    return trainer_memory(config, shape_of(shape), "cuda").needs  # type: ignore[arg-type]


if __name__ == "__main__":
    run_step("memory", check)
