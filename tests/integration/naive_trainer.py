"""A naive trainer to compare with: one sequence at a time, float32, no packing, no ranks."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stargate.actors.training.step_plan import Layout, learning_rate, plan_steps
from stargate.config.run import TrainerConfig
from stargate.types import TrainingExample


def make_examples(count: int, vocabulary: int = 49152) -> list[TrainingExample]:
    """Examples of 6 to 40 tokens, about half of them to learn, with pair ids p00, p01, ..."""
    draw = random.Random(1)
    return [
        make_example(f"{number:02}", draw.randint(6, 40), draw, vocabulary)
        for number in range(count)
    ]


def make_example(
    name: str, length: int, draw: random.Random, vocabulary: int = 49152
) -> TrainingExample:
    """Random tokens; the second one is learned in any case."""
    ids = tuple(draw.randrange(3, vocabulary) for _ in range(length))
    learned = {1, *(k for k in range(1, length) if draw.random() < 0.5)}
    weights = tuple(int(k in learned) for k in range(length))
    return TrainingExample(f"p{name}", f"d{name}", ids, weights, "")


def config(**changes: Any) -> TrainerConfig:
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "batch_size": 4,
        "micro_batch_size": 2,
        "zero_stage": 2,
        "dtype": "float32",
        "validation_fraction": 0.0,
        "num_epochs": 2,
        "row_tokens": 60,  # two rows for most batches of four examples
    }
    return TrainerConfig(**{**settings, **changes})


def load(folder: Path, dtype: Any = torch.float32) -> Any:
    """The model, as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def logprobs_of(model: Any, example: TrainingExample) -> Tensor:
    """log p of the tokens that have a weight, (P,)."""
    logprobs = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
    places = [k for k, weight in enumerate(example.weights) if weight]
    return torch.stack([logprobs[k - 1, example.input_ids[k]] for k in places])


def mean_loss(model: Any, examples: Sequence[TrainingExample]) -> Tensor:
    """-log p per loss token, in nats."""
    logprobs = torch.cat([logprobs_of(model, example) for example in examples])
    return -logprobs.sum() / len(logprobs)


def naive_training(
    model: Any,
    examples: list[TrainingExample],
    settings: TrainerConfig,
    loss_of: Callable[[Any, Sequence[TrainingExample]], Tensor] = mean_loss,
) -> tuple[list[float], list[float]]:
    """Trains what learns of the model by a plain loop. Losses and gradient norms."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, weight_decay=settings.weight_decay)
    layout = Layout(settings.batch_size, settings.micro_batch_size, 1)
    lengths = [len(example.input_ids) for example in examples]
    steps = plan_steps(range(len(examples)), lengths, layout, settings.num_epochs, seed=0)
    losses, norms = [], []
    for number, step in enumerate(steps):
        loss = loss_of(model, [examples[i] for i in step.examples])
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(learning, settings.max_grad_norm)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, len(steps), settings.learning_rate, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in the folder's own dtype."""
    return weights_of(load(folder, "auto"))


def furthest(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert got.keys() == expected.keys()
    return max(float((got[k].float() - expected[k].float()).abs().max()) for k in got)
