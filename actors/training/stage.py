"""(torch) The optimizer steps of a training stage, whatever backend makes them.

    score_start: log p of all sampled tokens under the start weights, for policy gradients
    learn(step): each micro-batch forward, objective, backward -> losses of all ranks, finite?
                 -> gradient norm, in order? -> one optimizer step

The denominator of the loss. Its terms are summed over the whole step, on all ranks and in all
micro-batches, and divided by one number (objectives.py), so every term weighs the same wherever it
happens to be computed. Backends average gradients over ranks, therefore each rank's sum is
multiplied by (number of ranks / denominator).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor

from stargate.actors.training.backend import Backend
from stargate.actors.training.batches import Batch, make_batch
from stargate.actors.training.objectives import Objective
from stargate.actors.training.spec import TrainerSpec, make_layout
from stargate.actors.training.step_plan import MicroBatch, Step, share_out
from stargate.config.run import TrainerConfig
from stargate.errors import DataError, DivergenceError
from stargate.types import TrainingExample

# Pair ids that one error message names.
_MAX_NAMED = 8
# Steps whose gradient norms are known before a later one is compared with them.
_MIN_EARLIER_NORMS = 4


class TrainingStage:
    """Every rank sees the same losses and norms, so all stop together."""

    def __init__(
        self,
        spec: TrainerSpec,
        backend: Backend,
        objective: Objective,
        examples: Sequence[TrainingExample],
    ) -> None:
        """Raises DataError if an example is longer than the model takes."""
        self._spec = spec
        self._backend = backend
        self._objective = objective
        self._examples = examples
        _check_lengths(examples, backend.max_positions, "the model takes")
        self.layout = make_layout(spec, backend.packed, objective.whole_groups)
        # log p of each example's loss tokens under the start weights, in nats.
        self._start: list[list[float]] = []

    def score_start(self) -> None:
        """Computes the examples' log-probs under the weights that the model has now.

        For all of them at once, in examples that also have those of the engine that sampled them;
        without those nothing is done. To be called before the first step, on all ranks.
        """
        if any(example.behaviour_logprobs is None for example in self._examples):
            return
        lengths = [len(example.input_ids) for example in self._examples]
        own: dict[int, list[float]] = {}
        for micro in share_out(range(len(lengths)), lengths, self.layout).ranks[self._spec.rank]:
            following = iter(self._backend.forward(self._batch(micro), learning=False).tolist())
            own |= {i: list(islice(following, self._examples[i].num_loss_tokens)) for i in micro}
        told = self._backend.exchange({"start": own})
        everyone = {i: logprobs for one in told for i, logprobs in one["start"].items()}
        self._start = [everyone[i] for i in range(len(lengths))]

    def engine_gap(self, step: Step) -> tuple[float, float] | None:
        """How far the engine's log-probs of the step's tokens are from ours under the same weights:

        mean and maximum of the absolute differences, in nats. None if nothing was scored.
        """
        if not self._start:
            return None
        gaps = [
            abs(told - ours)
            for i in step.examples
            for told, ours in zip(self._engine_logprobs(i), self._start[i], strict=True)
        ]
        return statistics.fmean(gaps), max(gaps)

    def _engine_logprobs(self, index: int) -> list[float]:
        example = self._examples[index]
        told = zip(example.behaviour_logprobs or (), example.weights, strict=True)
        return [logprob for logprob, weight in told if weight]

    def learn(
        self, step: Step, rate: float, earlier_norms: Sequence[float], where: str
    ) -> tuple[float, float]:
        """One optimizer step at learning rate `rate`. Its loss and its gradient norm.

        Raises DivergenceError that begins with `where` and names pairs; then no weight has changed.
        """
        scale = self._spec.world_size / self._denominator(step)
        micros = step.ranks[self._spec.rank]
        terms = []
        for number, micro in enumerate(micros):
            found = self._terms(micro, learning=True)
            terms.append(found.detach())
            self._backend.backward(found.sum().float() * scale, number == len(micros) - 1)
        loss = self._mean(step, terms, where)

        def check(norm: float) -> None:
            if (problem := norm_problem(norm, earlier_norms, self._spec.config)) is not None:
                raise DivergenceError(
                    f"{where}: the gradient norm {problem}, on pairs "
                    f"{self._name_pairs(step.examples)}; nothing was saved"
                )

        return loss, self._backend.update(rate, check)

    def evaluate(self, step: Step, where: str) -> float:
        """The loss of the step's examples; nothing is learned. Raises DivergenceError."""
        micros = step.ranks[self._spec.rank]
        return self._mean(step, [self._terms(micro, learning=False) for micro in micros], where)

    def _terms(self, micro: MicroBatch, learning: bool) -> Tensor:
        """The terms of a micro-batch's examples. A dummy has one, which is 0."""
        batch = self._batch(micro)
        logprobs = self._backend.forward(batch, learning)
        return self._objective.loss(logprobs, batch) if micro else logprobs * 0.0

    def _batch(self, micro: MicroBatch) -> Batch:
        device = torch.device(self._spec.device)
        batch = make_batch([self._examples[i] for i in micro], self._backend.packed, device)
        if not micro or not self._start:
            return batch
        start = torch.tensor([*chain.from_iterable(self._start[i] for i in micro)], device=device)
        return replace(batch, start_logprobs=start)

    def _mean(self, step: Step, terms: Sequence[Tensor], where: str) -> float:
        """The step's loss, from this rank's terms of each micro-batch and the other ranks'."""
        own = step.ranks[self._spec.rank]
        values = {
            i: term
            for micro, of_micro in zip(own, terms, strict=True)
            if micro
            for i, term in zip(micro, of_micro.tolist(), strict=True)
        }
        told = self._backend.exchange({"terms": values})
        everyone = {i: term for one in told for i, term in one["terms"].items()}
        bad = [i for i in step.examples if not math.isfinite(everyone[i])]
        if bad:
            raise DivergenceError(
                f"{where}: the loss is {everyone[bad[0]]} on {len(bad)} of {len(everyone)} "
                f"examples, pairs {self._name_pairs(bad)}; nothing was saved"
            )
        total: float = sum(everyone[i] for i in step.examples)
        return total / self._denominator(step)

    def _denominator(self, step: Step) -> float:
        return self._objective.denominator([self._examples[i] for i in step.examples])

    def _name_pairs(self, indices: Sequence[int]) -> str:
        pairs = sorted({self._examples[i].pair_id for i in indices})
        more = f" and {len(pairs) - _MAX_NAMED} more" if len(pairs) > _MAX_NAMED else ""
        return ", ".join(pairs[:_MAX_NAMED]) + more


def check_examples(examples: Sequence[TrainingExample], max_length: int) -> None:
    """Raises DataError naming the first example that can't be trained on.

    Example builders drop and count what is too long or empty, so these are their defects.
    """
    if not examples:
        raise DataError("trainer: there is no example to train on")
    _check_lengths(examples, max_length, "trainer.max_length is")
    for example in examples:
        if not example.num_loss_tokens:
            problem = "no token has a weight, so there is nothing to learn"
        elif example.weights[0]:
            problem = "nothing predicts the first token, so it can't be learned"
        else:
            continue
        raise DataError(f"{_name(example)}: {problem}")


def _check_lengths(examples: Sequence[TrainingExample], limit: int, whose: str) -> None:
    for example in examples:
        if len(example.input_ids) > limit:
            raise DataError(f"{_name(example)}: {len(example.input_ids)} tokens, {whose} {limit}")


def _name(example: TrainingExample) -> str:
    return f"training example {example.dialogue_id} of pair {example.pair_id}"


def norm_problem(norm: float, earlier: Sequence[float], config: TrainerConfig) -> str | None:
    """What is wrong with a step's gradient norm; None if nothing is.

    Norms differ between models and fall while a stage learns, so the limit is a multiple of the
    median of the stage's earlier steps, once there are a few. A norm that would not even be clipped
    is never too large.
    """
    if not math.isfinite(norm) or norm < 0:  # DeepSpeed also says -1 for one that is not finite
        return f"is {norm}"
    if len(earlier) < _MIN_EARLIER_NORMS or norm <= config.max_grad_norm:
        return None
    typical = statistics.median(earlier)
    if norm <= config.max_grad_norm_growth * typical:
        return None
    return (
        f"is {norm:.3g}, {norm / typical:.0f} times the median {typical:.3g} of the steps before "
        f"(trainer.max_grad_norm_growth is {config.max_grad_norm_growth:g})"
    )
