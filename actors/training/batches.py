"""(torch) The tensors of one forward pass: examples packed into a row, or padded to one length.

    examples -> Batch: the model's inputs, for each loss token where it is predicted and whose it
                is, and what an objective may want to know of it

B sequences, T tokens of a sequence or row, P loss tokens, E examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stargate.actors.training.packing import pack
from stargate.types import TrainingExample

_SIDES = {None: 0, "chosen": 1, "rejected": -1}
_DUMMY = TrainingExample("", "", (0, 0), (0.0, 1.0), "")


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `inputs` are keywords of the model.

    (P,): logits at (rows[p], columns[p]) predict targets[p], a token of example owners[p] (0..E-1).
    Log-probs in nats are None unless all examples have them; `start_logprobs` are those of the
    weights that training started from.
    (E,): examples with equal `groups` belong together; `sides` are 1 for a chosen one, -1 for a
    rejected one, 0 for others.
    """

    inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor
    owners: Tensor
    weights: Tensor
    behaviour_logprobs: Tensor | None
    reference_logprobs: Tensor | None
    groups: Tensor
    sides: Tensor
    start_logprobs: Tensor | None = None

    def sum_by_example(self, values: Tensor) -> Tensor:
        """(P,) -> (E,), in float64: sums of many tokens lose nothing."""
        sums = torch.zeros(len(self.groups), dtype=torch.float64, device=values.device)
        return sums.index_add(0, self.owners, values.double())


def make_batch(examples: Sequence[TrainingExample], packed: bool, device: torch.device) -> Batch:
    """The batch of one micro-batch. Without examples it is a dummy with one loss token.

    A rank that has run out of examples takes part in the forward pass with it, at weight zero.
    """
    examples = examples or [_DUMMY]
    ids = [example.input_ids for example in examples]
    places = [
        (number, column)
        for number, example in enumerate(examples)
        for column, weight in enumerate(example.weights)
        if weight
    ]
    owners, columns = torch.tensor(places).to(device).unbind(1)

    def at_places(values: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor([values[n][c] for n, c in places], device=device)

    def logprobs(name: str) -> Tensor | None:
        values = [getattr(example, name) for example in examples]
        return None if None in values else at_places(values).float()

    inputs: dict[str, Any] = {"input_ids": _padded(ids).to(device)}
    rows, predicting = owners, columns - 1
    if packed:
        row, positions = pack(ids)
        lengths = tuple(map(len, ids))
        starts = torch.tensor((0, *lengths[:-1]), device=device).cumsum(0)
        inputs = {
            "input_ids": row.to(device),
            "position_ids": positions.to(device),
            "packed_lengths": lengths,
        }
        rows, predicting = torch.zeros_like(owners), predicting + starts[owners]
    groups = [example.group or number for number, example in enumerate(examples)]
    return Batch(
        inputs,
        rows,
        predicting,
        targets=at_places(ids),
        owners=owners,
        weights=at_places([example.weights for example in examples]).float(),
        behaviour_logprobs=logprobs("behaviour_logprobs"),
        reference_logprobs=logprobs("reference_logprobs"),
        groups=torch.tensor([groups.index(group) for group in groups], device=device),
        sides=torch.tensor([_SIDES[example.side] for example in examples], device=device),
    )


def _padded(ids: Sequence[Sequence[int]]) -> Tensor:
    """(B, T). Padding is on the right: a causal model never looks there, so no mask is needed."""
    width = max(map(len, ids))
    return torch.tensor([[*row, *([0] * (width - len(row)))] for row in ids])
