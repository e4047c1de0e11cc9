"""Step 7. A training that is killed goes on from its checkpoint, to the same losses."""

import os

from tests.gpu.steps.common import (
    BACKENDS,
    DIES_AT,
    Step,
    make_examples,
    model_config,
    run_step,
    save_random,
    train_alone,
    trainer_config,
    trainer_spec,
)

# Nats per token. Some of a GPU's sums are made in another order each time.
_TOLERANCE = {"cpu": 0.0, "cuda": 2e-3}


def check(step: Step) -> None:
    shape = model_config("llama-100m", step.small)
    start = save_random(step.folder / "m0", shape, step.device)
    examples = make_examples(32, 96, shape.vocab_size)
    for stage in (2, 3):
        config = trainer_config(
            zero_stage=stage,
            checkpoint_steps=3,
            backend=BACKENDS + "Mortal",
            max_length=128,
        )
        folder, kept = step.folder / f"zero{stage}", step.folder / f"kept{stage}"
        whole = train_alone(trainer_spec(step, start, config), examples, folder / "whole")
        os.environ[DIES_AT] = "5"
        died = False
        try:
            train_alone(trainer_spec(step, start, config), examples, folder / "torn", kept)
        except RuntimeError:
            died = True
        del os.environ[DIES_AT]
        step.require(died, f"ZeRO-{stage}: the training was not killed")
        again = train_alone(trainer_spec(step, start, config), examples, folder / "again", kept)
        gaps = [abs(a - b) for a, b in zip(again.losses, whole.losses, strict=True)]
        step.figures[f"zero{stage}"] = {
            "steps": len(gaps),
            "repeated": again.num_repeated_steps,
            "largest_gap": max(gaps),
            "losses": [round(loss, 4) for loss in again.losses],
        }
        step.require(
            max(gaps) <= _TOLERANCE[step.device], f"ZeRO-{stage}: losses are {max(gaps):.5f} off"
        )
        step.require(again.num_repeated_steps == 1, f"ZeRO-{stage}: it did not go on from step 3")


if __name__ == "__main__":
    run_step("resume", check)
