"""Nucleus (top-p) sampling and log-probs that are fast on CPU, inside vLLM (torch, vllm).

vLLM's own top-p lets torch sort the whole vocabulary for every token: 259 ms for 64 rows of 49,152
logits on one core, more than the model's forward pass (150 ms). The nucleus is small, so the
largest probabilities nearly always decide it, and NumPy sorts the remaining rows 30 times as fast.
The distribution stays the same; vLLM then draws from what is left with the request's own seed.

vLLM would also compute the log-probs of the whole vocabulary at every step, whether anybody asks
for them or not, and compile a kernel for ranks that nobody reads. Here it hands the logits that it
draws from over as they are (`processed_logits`), and only a batch in which somebody asks pays.

Imported by vLLM in its worker, as spec.engine_arguments tells it; by nothing else.
"""

from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates
from vllm.v1.sample.sampler import Sampler

from stargate.actors.engines.spec import NUCLEUS_ARGUMENT

# How many of the largest probabilities are looked at before a row is sorted as a whole; each number
# only for rows that the one before left undecided. Finding them takes 0.1 ms a row, sorting 0.5.
_NUM_LARGEST = (128, 2048)


def keep_nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Sets all logits outside the nucleus to -inf, in place. logits (R, V), top_p (R,) in (0, 1).

    The nucleus is the smallest set of most probable tokens with a mass of at least top_p. Tokens
    exactly as probable as its least one belong to it too, so that no order among them matters.
    """
    probs = logits.softmax(dim=-1)
    num_tokens = probs.shape[-1]
    threshold = torch.empty_like(top_p)
    rows = torch.arange(len(probs))  # those that are undecided
    for number in (*(n for n in _NUM_LARGEST if n < num_tokens), num_tokens):
        largest = _largest(probs if len(rows) == len(probs) else probs[rows], number)
        # Rounding may leave even a whole row's sum below a top_p close to 1: then all belong.
        threshold[rows], decided = _least_of_nucleus(largest, top_p[rows])
        rows = rows[~decided]
        if not len(rows):
            break
    return logits.masked_fill_(probs < threshold.unsqueeze(1), float("-inf"))


def _largest(probs: torch.Tensor, number: int) -> torch.Tensor:
    """The largest probabilities (R, number) of each row, in descending order."""
    rows = probs.numpy()
    if number < rows.shape[-1]:
        rows = np.partition(rows, -number, axis=-1)[:, -number:]
    return torch.from_numpy(np.sort(rows, axis=-1)).flip(-1)


def _least_of_nucleus(
    descending: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of (R, N) probabilities: the one at which their sum reaches top_p, and if it does."""
    position = (descending.cumsum(dim=-1) < top_p.unsqueeze(1)).sum(dim=-1)
    reached = position < descending.shape[-1]
    position = position.clamp(max=descending.shape[-1] - 1)
    return descending.gather(1, position.unsqueeze(1)).squeeze(1), reached


def sampled_logprobs(
    logits: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor
) -> LogprobsTensors:
    """In place of `Sampler.gather_logprobs`: log p of the sampled tokens (B,) alone, in nats.

    logits (B, V) are those that vLLM drew from; of a greedy row they are the model's own. Ranks are
    not computed.
    """
    if num_logprobs != 0:
        raise ValueError(f"only the sampled token's log-prob is computed, got {num_logprobs}")
    ids = token_ids.unsqueeze(1)
    logprobs = logits.log_softmax(dim=-1).gather(1, ids)
    return LogprobsTensors(ids.to(torch.int32), logprobs, torch.zeros_like(token_ids))


class NucleusLogitsProcessor(LogitsProcessor):  # type: ignore[misc] # vLLM ships no types
    """Applies the `top_p` that requests carry in `extra_args` (spec.sampling_arguments).

    The most probable token is always kept, so vLLM calls it for sampled batches only, with logits
    that are divided by the temperature already.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        Sampler.gather_logprobs = staticmethod(sampled_logprobs)
        self._top_p: dict[int, float] = {}  # row of the batch -> top_p
        self._rows = torch.empty(0, dtype=torch.long)
        self._values = torch.empty(0)

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        """Follows requests as they come, go and move in the batch."""
        if process_dict_updates(self._top_p, batch_update, _requested_top_p):
            rows = sorted(self._top_p)
            self._rows = torch.tensor(rows, dtype=torch.long)
            self._values = torch.tensor([self._top_p[row] for row in rows])

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (B, V) -> the same, each row with only its nucleus left."""
        if len(self._rows) == logits.shape[0]:
            return keep_nucleus(logits, self._values)
        if len(self._rows):
            logits[self._rows] = keep_nucleus(logits[self._rows], self._values)
        return logits


def _requested_top_p(
    params: Any, prompt_ids: list[int] | None, output_ids: list[int]
) -> float | None:
    value = (params.extra_args or {}).get(NUCLEUS_ARGUMENT)
    return None if value is None else float(value)
