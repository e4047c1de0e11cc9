"""(torch) The losses: what an optimizer step makes smaller, given log-probs of the loss tokens.

    loss(log-probs of a micro-batch) -> one term per example;  the step's loss is
    (sum of all terms of the step, on all ranks) / denominator(its examples)

To add one: a class here and a line in `_OBJECTIVES`, or one from outside, "package.module:Class".
"""

import pkgutil
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from stargate.actors.training.batches import Batch
from stargate.types import TrainingExample


class Objective(Protocol):
    """A loss. P loss tokens, E examples of a micro-batch."""

    # Whether a term needs all examples of its group: then they meet in one micro-batch. Otherwise
    # they only meet in one optimizer step.
    whole_groups: bool

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """Each example's term (E,), of the policy's log-probs (P,) of the batch's targets, in nats.

        The terms are summed, so one of a whole group may stand with any of its examples.
        """
        ...

    def denominator(self, examples: Sequence[TrainingExample]) -> float:
        """What the summed terms of an optimizer step are divided by, from all of its examples.

        Above 0. Over the whole step, so that a term weighs the same on whichever rank and in
        whichever micro-batch it is computed.
        """
        ...


class WeightedNll:
    """Weighted negative log-likelihood, per loss token; with weights of 1 that of PAPER 5."""

    whole_groups = False

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """-(sum of weight x log p) of each example."""
        return batch.sum_by_example(-(batch.weights * logprobs))

    def denominator(self, examples: Sequence[TrainingExample]) -> float:
        """The sum of |weight|: with weights of 1 the number of loss tokens."""
        return float(sum(abs(weight) for example in examples for weight in example.weights))


_OBJECTIVES: dict[str, type[Objective]] = {"weighted_nll": WeightedNll}


def make_objective(name: str) -> Objective:
    """The objective of this name, or of a class that is named as "package.module:Class"."""
    made: Objective = (_OBJECTIVES.get(name) or pkgutil.resolve_name(name))()
    return made
