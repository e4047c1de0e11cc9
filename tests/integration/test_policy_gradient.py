"""Policy gradients in the trainer: the start is scored once, against a naive float32 loop."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stargate.errors import MachineError
from stargate.types import TrainingExample, TrainResult
from tests.integration.naive_trainer import (
    config,
    furthest,
    load,
    load_weights,
    logprobs_of,
    make_examples,
    naive_training,
    weights_of,
)
from tests.integration.ranks import Ranks

pytestmark = pytest.mark.integration

CLIP, KL = 0.02, 0.3  # so narrow that later steps reach it
OBJECTIVE: dict[str, Any] = {
    "objective": "clipped_policy_gradient",
    "objective_settings": {"clip_ratio": CLIP, "kl": KL},
}


@pytest.fixture(scope="module")
def examples(tiny: Path) -> list[TrainingExample]:
    """Advantages of both signs. The engine is off by 0.25 nats, at each first token by 1; the
    reference's log-probs are those of the start less 0.5.
    """
    model, made = load(tiny), []
    for number, example in enumerate(make_examples(11)):
        places = [place for place, weight in enumerate(example.weights) if weight]
        with torch.no_grad():
            start = logprobs_of(model, example).tolist()
        weights, engine, reference = ([0.0] * len(example.weights) for _ in range(3))
        for place, logprob in zip(places, start, strict=True):
            weights[place] = (-1.0) ** number * (1 + number / 4)
            engine[place] = logprob + (1.0 if place == places[0] else 0.25)
            reference[place] = logprob - 0.5
        fields = {"behaviour_logprobs": tuple(engine), "reference_logprobs": tuple(reference)}
        made.append(replace(example, weights=tuple(weights), **fields))  # type: ignore[arg-type]  # tuples
    return made


def naive_loss(tiny: Path, examples: Sequence[TrainingExample]) -> Any:
    """Token by token, of a model that has the start's log-probs by example."""
    model = load(tiny)
    with torch.no_grad():
        starts = {example.dialogue_id: logprobs_of(model, example) for example in examples}

    def loss(model: Any, batch: Sequence[TrainingExample]) -> Tensor:
        terms = []
        for example in batch:
            assert example.reference_logprobs is not None
            places = [place for place, weight in enumerate(example.weights) if weight]
            new, old = logprobs_of(model, example), starts[example.dialogue_id]
            for number, place in enumerate(places):
                rho = torch.exp(new[number] - old[number])
                advantage = example.weights[place]
                bound = min(max(rho.item(), 1 - CLIP), 1 + CLIP) * advantage
                gain = rho * advantage if rho.item() * advantage <= bound else torch.tensor(bound)
                above = example.reference_logprobs[place] - new[number]
                terms.append(KL * (torch.exp(above) - above - 1) - gain)
        return torch.stack(terms).mean()

    return loss


@pytest.mark.parametrize(("num_ranks", "packing"), [(1, True), (2, True), (2, False)])
def test_the_trainer_equals_the_naive_loop_and_tells_the_engines_gap(
    one: Ranks,
    two: Ranks,
    tiny: Path,
    tmp_path: Path,
    examples: list[TrainingExample],
    num_ranks: int,
    packing: bool,
) -> None:
    settings = config(num_ranks=num_ranks, packing=packing)
    model = load(tiny)
    losses, norms = naive_training(model, examples, settings, naive_loss(tiny, examples))
    ranks = one if num_ranks == 1 else two
    for result in ranks.train(settings, examples, tiny, tmp_path / "m1", **OBJECTIVE):
        assert result.losses == pytest.approx(losses, abs=1e-4)
        assert result.grad_norms == pytest.approx(norms, rel=1e-3)
        assert result.engine_gap_max == pytest.approx([1.0] * 6, abs=1e-4)
        assert len(result.engine_gap_mean) == 6
        # Each example's first token is off by 1, the others by 0.25.
        tokens = sum(example.num_loss_tokens for example in examples)
        total = sum(
            mean * sum(examples[i].num_loss_tokens for i in part)
            for mean, part in zip(result.engine_gap_mean, parts(result, examples), strict=True)
        )
        assert total == pytest.approx(2 * (0.25 * tokens + 0.75 * len(examples)), rel=1e-3)
    moved = furthest(weights_of(model), load_weights(tiny))
    assert furthest(load_weights(tmp_path / "m1"), weights_of(model)) < 0.01 * moved


def parts(result: TrainResult, examples: Sequence[TrainingExample]) -> list[tuple[int, ...]]:
    """The examples of each step."""
    from stargate.actors.training.step_plan import Layout, plan_steps

    lengths = [len(example.input_ids) for example in examples]
    return [step.examples for step in plan_steps(range(11), lengths, Layout(4, 2, 1), 2, seed=0)]


def test_a_training_that_goes_on_has_the_same_start(
    one: Ranks, tiny: Path, tmp_path: Path, examples: list[TrainingExample]
) -> None:
    settings = config(checkpoint_steps=2, validation_fraction=0.2)
    (whole,) = one.train(settings, examples, tiny, tmp_path / "whole", **OBJECTIVE)
    folder, in_the_way = tmp_path / "training", tmp_path / "file"
    in_the_way.write_text("no folder")
    with pytest.raises(MachineError, match="can't save the model"):
        one.train(settings, examples, tiny, in_the_way / "m1", checkpoint_dir=folder, **OBJECTIVE)
    before = one.log()
    (result,) = one.train(
        settings, examples, tiny, tmp_path / "m1", checkpoint_dir=folder, **OBJECTIVE
    )
    assert "training goes on from step" in one.log().removeprefix(before)
    assert replace(result, seconds=0, model_dir="", num_repeated_steps=0) == replace(
        whole, seconds=0, model_dir="", num_repeated_steps=0
    )
    assert whole.validation_loss is not None
