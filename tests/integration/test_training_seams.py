"""Objectives and backends: literal values, and one of each from outside that trains a model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stargate.actors.modeling.model import save_model
from stargate.actors.training.batches import Batch, make_batch
from stargate.actors.training.objectives import WeightedNll, make_objective
from stargate.actors.training.spec import TrainerSpec
from stargate.errors import ConfigError
from stargate.types import TrainingExample
from tests.integration.naive_trainer import (
    config,
    furthest,
    load,
    load_weights,
    logprobs_of,
    make_examples,
    weights_of,
)
from tests.integration.ranks import Ranks

pytestmark = pytest.mark.integration

# Two pairs, interleaved, of texts with two loss tokens each; log-probs of tokens that have no loss
# are not looked at.
PAIRS = [
    TrainingExample(
        f"p{number}",
        f"d{number}-{side}",
        (*e.input_ids[:4], first),
        (0, 0, 0.5, 0, -2.0),
        "",
        behaviour_logprobs=(9.0, 9.0, -1.0 - number, 9.0, -3.0),
        reference_logprobs=(9.0, 9.0, -2.0, 9.0, -4.0 - number),
        group=f"pair {number}",
        side=side,
    )
    for side, first in (("chosen", 7), ("rejected", 8))
    for number, e in enumerate(make_examples(2))
]


class PairLoss:
    """-log sigmoid(what the policy prefers the chosen text by, more than the reference)."""

    whole_groups = True

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        assert batch.reference_logprobs is not None
        gains = batch.sides * batch.sum_by_example(logprobs - batch.reference_logprobs)
        margins = torch.zeros_like(gains).index_add(0, batch.groups, gains)
        return -functional.logsigmoid(margins[batch.groups]) * (batch.sides > 0)

    def denominator(self, examples: Any) -> float:
        return float(sum(example.side == "chosen" for example in examples))


class PlainTorch:
    """A backend without a library: one rank, float32, no checkpoints."""

    name, packed, max_positions, shapes = "plain torch", False, 512, dict[str, Any]()

    def __init__(self, spec: TrainerSpec, start_model_dir: str) -> None:
        self.model = load(Path(start_model_dir))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), weight_decay=spec.config.weight_decay
        )
        self.base_dir, self.max_norm = spec.base_model_dir, spec.config.max_grad_norm

    @staticmethod
    def join(device: str) -> None: ...

    @staticmethod
    def leave() -> None: ...

    def forward(self, batch: Batch, learning: bool) -> Tensor:
        with torch.set_grad_enabled(learning):
            logprobs = self.model(**batch.inputs).logits.log_softmax(-1)
        found: Tensor = logprobs[batch.rows, batch.columns, batch.targets]
        return found

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]  # torch's

    def update(self, rate: float, check: Callable[[float], None]) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm))
        check(norm)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def settle(self) -> None: ...

    def save(self, output_dir: str) -> None:
        save_model(self.model, weights_of(self.model), self.base_dir, output_dir)

    def get(self, kind: str, name: str) -> Tensor:
        raise NotImplementedError

    def set(self, kind: str, name: str, value: Tensor) -> None:
        raise NotImplementedError

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [dict(message)]

    def close(self) -> None: ...


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_tells_of_each_loss_token_and_each_example(packed: bool) -> None:
    lonely = TrainingExample("p", "d", (5, 6, 7), (0, 1, 0), "")
    batch = make_batch([*PAIRS[:3], lonely], packed, torch.device("cpu"))
    assert batch.owners.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert batch.weights.tolist() == [0.5, -2.0] * 3 + [1.0]
    assert batch.groups.tolist() == [0, 1, 0, 3]
    assert batch.sides.tolist() == [1, 1, -1, 0]
    assert batch.behaviour_logprobs is batch.reference_logprobs is None  # not all have them
    assert batch.sum_by_example(batch.weights).tolist() == [-1.5, -1.5, -1.5, 1.0]
    batch = make_batch(PAIRS, packed, torch.device("cpu"))
    assert batch.behaviour_logprobs is not None and batch.reference_logprobs is not None
    assert batch.behaviour_logprobs.tolist() == [-1.0, -3.0, -2.0, -3.0] * 2
    assert batch.reference_logprobs.tolist() == [-2.0, -4.0, -2.0, -5.0] * 2


def test_weighted_nll_literal_values() -> None:
    objective = make_objective("weighted_nll")
    assert isinstance(objective, WeightedNll)
    batch = make_batch(PAIRS[:2], True, torch.device("cpu"))
    logprobs = torch.tensor([-1.0, -3.0, -2.0, -0.5], requires_grad=True)
    terms = objective.loss(logprobs, batch)
    # -(0.5 x -1 + -2 x -3) and -(0.5 x -2 + -2 x -0.5).
    assert terms.tolist() == [-5.5, 0.0]
    terms.sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-0.5, 2.0, -0.5, 2.0]
    assert objective.denominator(PAIRS[:2]) == 5.0
    assert objective.denominator(make_examples(3)) == sum(
        e.num_loss_tokens for e in make_examples(3)
    )


def test_an_objective_that_is_not_there_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_loss"):
        make_objective("no_such_loss")


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_loss_from_outside_that_needs_both_of_a_pair_is_trained(
    one: Ranks, two: Ranks, tiny: Path, tmp_path: Path, packing: bool, num_ranks: int
) -> None:
    settings = config(num_ranks=num_ranks, packing=packing, num_epochs=3, learning_rate=1e-3)
    ranks = one if num_ranks == 1 else two
    name = f"{__name__}:{PairLoss.__name__}"
    results = ranks.train(settings, PAIRS, tiny, tmp_path / "m1", objective=name)
    model = load(tiny)
    with torch.no_grad():
        gains = [
            float(logprobs_of(model, example).sum()) - references[2] - references[4]
            for example in PAIRS
            if (references := example.reference_logprobs) is not None
        ]
    margins = torch.tensor([gains[0] - gains[2], gains[1] - gains[3]])
    expected = float(-functional.logsigmoid(margins).mean())
    for result in results:
        assert result.losses[0] == pytest.approx(expected, abs=1e-4)
        assert result.losses[-1] < result.losses[0]
        assert result.num_loss_tokens == 3 * 8


def test_a_backend_from_outside_trains_a_model(one: Ranks, tiny: Path, tmp_path: Path) -> None:
    examples = make_examples(11)
    settings = config(backend=f"{__name__}:{PlainTorch.__name__}", validation_fraction=0.2)
    (result,) = one.train(settings, examples, tiny, tmp_path / "m1", checkpoint_dir=tmp_path / "t0")
    (own,) = one.train(config(validation_fraction=0.2), examples, tiny, tmp_path / "own")
    assert result.losses == pytest.approx(own.losses, abs=1e-4)
    assert result.validation_loss == pytest.approx(own.validation_loss, abs=1e-4)
    gap = furthest(load_weights(tmp_path / "m1"), load_weights(tmp_path / "own"))
    assert gap < 0.01 * furthest(load_weights(tmp_path / "m1"), load_weights(tiny))
    with pytest.raises(ConfigError, match=r"trainer\.backend: 'none' can't be loaded: No module"):
        one.train(config(backend="none"), examples, tiny, tmp_path / "m1")
