"""(torch) The tensors of one forward pass: examples packed into a row, or padded to one length.

    examples -> Batch: the model's inputs, and for each loss token where it is predicted and whose

B sequences, T tokens of a sequence or row, P loss tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stargate.actors.training.packing import pack
from stargate.types import TrainingExample


@dataclass(frozen=True)
class Batch:
    """`inputs` are keywords of the model. The rest is (P,):

    logits at (rows[p], columns[p]) predict targets[p], a token of the micro-batch's example
    number owners[p].
    """

    inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor
    owners: Tensor


def make_batch(examples: Sequence[TrainingExample], packed: bool, device: torch.device) -> Batch:
    """The batch of one micro-batch. Without examples it is a dummy with one loss token.

    A rank that has run out of examples takes part in the forward pass with it, at weight zero.
    """
    ids = [example.input_ids for example in examples] or [(0, 0)]
    learned = [
        (number, column, ids[number][column])
        for number, example in enumerate(examples)
        for column, weight in enumerate(example.weights)
        if weight
    ] or [(0, 1, 0)]
    owners, columns, targets = torch.tensor(learned).to(device).unbind(1)
    predicting = columns - 1
    if not packed:
        inputs = {"input_ids": _padded(ids).to(device)}
        return Batch(inputs, owners, predicting, targets, owners)
    row, positions = pack(ids)
    lengths = tuple(map(len, ids))
    starts = torch.tensor((0, *lengths[:-1]), device=device).cumsum(0)
    return Batch(
        {
            "input_ids": row.to(device),
            "position_ids": positions.to(device),
            "packed_lengths": lengths,
        },
        torch.zeros_like(owners),
        predicting + starts[owners],
        targets,
        owners,
    )


def _padded(ids: Sequence[Sequence[int]]) -> Tensor:
    """(B, T). Padding is on the right: a causal model never looks there, so no mask is needed."""
    width = max(map(len, ids))
    return torch.tensor([[*row, *([0] * (width - len(row)))] for row in ids])
