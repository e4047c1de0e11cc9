"""(torch) The losses: what an optimizer step makes smaller, given log-probs of the loss tokens.

    loss(log-probs of a micro-batch) -> one term per example;  the step's loss is
    (sum of all terms of the step, on all ranks) / denominator(its examples)

To add one: a class here and a line in `_OBJECTIVES`, or one from outside, "package.module:Class".
"""

import pkgutil
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

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


class PreferenceLoss:
    """Direct preference optimisation (arXiv 2305.18290), with the chosen one's NLL (2404.19733):

    -log sigmoid(beta ((log pi_c - log ref_c) - (log pi_r - log ref_r))) - nll log pi_c / length_c

    log pi is the sum over an example's loss tokens. A group is one chosen and one rejected example;
    weights only say which tokens have loss.
    """

    whole_groups = True

    def __init__(self, beta: float, nll: float) -> None:
        self._beta, self._nll = beta, nll

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """The pair's term stands with its chosen example."""
        if batch.reference_logprobs is None:
            if batch.sides.any():
                raise ValueError("preferences need reference log-probs")
            return batch.sum_by_example(logprobs) * 0.0  # the dummy of a rank without examples
        chosen = batch.sides == 1
        above = batch.sum_by_example(logprobs - batch.reference_logprobs)
        # Of each group: the chosen one's log ratio minus the rejected one's.
        margins = torch.zeros_like(above).index_add(0, batch.groups, above * batch.sides)
        lengths = batch.sum_by_example(torch.ones_like(logprobs))
        nll = -batch.sum_by_example(logprobs) / lengths
        preference = -functional.logsigmoid(self._beta * margins[batch.groups])
        return torch.where(chosen, preference + self._nll * nll, 0.0)

    def denominator(self, examples: Sequence[TrainingExample]) -> float:
        """The number of pairs."""
        return float(sum(example.side == "chosen" for example in examples))


class ClippedPolicyGradient:
    """Policy gradient by token with a clipped ratio and a KL to the reference by the k3 estimator
    (GRPO: arXiv 2402.03300; mean over all tokens of a step: 2503.14476):

    -min(rho A, clip(rho, 1 - clip_ratio, 1 + clip_ratio) A) + kl (ref / pi - log(ref / pi) - 1)

    rho: a token's probability over that before the first step. Its weight is its advantage A.
    """

    whole_groups = False

    def __init__(self, clip_ratio: float, kl: float) -> None:
        self._clip_ratio, self._kl = clip_ratio, kl

    def loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        if batch.start_logprobs is None or batch.reference_logprobs is None:
            raise ValueError("policy gradients need the log-probs of the start and the reference")
        ratio = (logprobs - batch.start_logprobs).exp()
        clipped = ratio.clamp(1 - self._clip_ratio, 1 + self._clip_ratio)
        gain = torch.minimum(ratio * batch.weights, clipped * batch.weights)
        above = batch.reference_logprobs - logprobs
        return batch.sum_by_example(self._kl * (above.exp() - above - 1) - gain)

    def denominator(self, examples: Sequence[TrainingExample]) -> float:
        """The number of loss tokens."""
        return float(sum(example.num_loss_tokens for example in examples))


_OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "weighted_nll": WeightedNll,
    "preference": PreferenceLoss,
    "clipped_policy_gradient": ClippedPolicyGradient,
}


def make_objective(name: str, **settings: float) -> Objective:
    """The objective of this name, or of a class that is named as "package.module:Class".

    `settings` are its coefficients: `objective_settings` of the algorithm's config.
    """
    made: Objective = (_OBJECTIVES.get(name) or pkgutil.resolve_name(name))(**settings)
    return made
