"""(torch) Log-probs of gold tokens, without the logits of a whole pass in memory at once.

    the model's body: one pass -> hidden states at the scored positions (P, H)
    the rest of it (output layer, soft caps, scales): part by part -> log p (P,)

A pass may so have as many scored positions as it has tokens: with a vocabulary of 150,000 their
float32 logits would take 0.6 MB each.

T tokens of a row, P scored positions, H hidden size, V vocabulary; log-probs in nats.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stargate.actors.modeling.model import output_layer
from stargate.errors import ModelError
from stargate.resources.memory import SCORER_LOGIT_BYTES

# Bytes of logits that are worked on at once on a CPU: they stay in its cache meanwhile.
_CACHED_BYTES = 2 * 1024 * 1024


class GoldLogprobs:
    """A causal LM that is asked for the log-probs of single tokens.

    `rounded`: the output layer's product is computed in bfloat16 (see RoundedLinear).
    Raises ModelError for a model whose output layer is no plain one.
    """

    def __init__(self, model: Any, *, rounded: bool) -> None:
        head = output_layer(model)
        self.model = model
        self.num_tokens = head.out_features
        self._head = RoundedLinear(head) if rounded else _PreciseLinear(head)
        model.set_output_embeddings(self._head)
        self._body = model.base_model
        if self._body is model:
            raise ModelError(
                f"model {model.config.model_type}: its layers are no part of their own"
            )

    def __call__(self, rows: Tensor, columns: Tensor, targets: Tensor, **inputs: Any) -> Tensor:
        """log p (P,) of each target at position (rows[p], columns[p]) of the batch."""
        output = self._body(use_cache=False, **inputs)
        hidden = output.last_hidden_state[rows, columns]
        at_once = max(1, SCORER_LOGIT_BYTES // (4 * self.num_tokens))
        # The model's own forward does the rest, with what its body is said to have returned.
        self._body.forward = lambda *_, **__: output
        try:
            parts = zip(torch.split(hidden, at_once), torch.split(targets, at_once), strict=True)
            return torch.cat([self._part(output, *part) for part in parts])
        finally:
            del self._body.forward

    def _part(self, output: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        self._head.targets = targets
        output.last_hidden_state = hidden[None]
        logits = self.model(inputs_embeds=hidden[None], use_cache=False).logits[0].float()
        return logprobs(logits, targets)


class _PreciseLinear(nn.Module):
    """(1, P, H) -> (1, P, V) in the precision of its weight, whatever autocast says."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.targets: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.logits(hidden[0])[None]

    def logits(self, hidden: Tensor) -> Tensor:
        """(P, H) -> (P, V)."""
        return functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


class RoundedLinear(_PreciseLinear):
    """An output layer without a bias whose product is computed, and rounded, in bfloat16.

    torch on CPUs has no product of bfloat16 matrices with a float32 result, and its float32 product
    takes 2.3 times as long. Rounding moves a logit by up to 0.2 %; what that does to log p(target)
    is nearly all the target's own logit and the largest one, so these two are computed exactly.
    Every other one counts by its share of the probability, and their errors cancel. The weight may
    be bfloat16 itself.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head)
        self._rounded = head.weight.detach().to(torch.bfloat16)

    def logits(self, hidden: Tensor) -> Tensor:
        """(P, H) -> (P, V)."""
        assert self.targets is not None
        hidden = hidden.float()
        rounded = functional.linear(hidden.to(torch.bfloat16), self._rounded)
        found = torch.empty(rounded.shape)
        at_once = _cached_rows(rounded.shape[1])
        for low in range(0, len(found), at_once):
            part = slice(low, low + at_once)
            logits, chosen = found[part], hidden[part]
            logits.copy_(rounded[part])
            for ids in (logits.argmax(1), self.targets[part]):
                exact = (chosen * self.weight[ids]).sum(1)
                logits.scatter_(1, ids[:, None], exact[:, None])
        return found


def logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log p (P,) of each target under float32 logits (P, V)."""
    chosen = logits.gather(1, targets[:, None])[:, 0]
    at_once = _cached_rows(logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    return chosen - torch.cat([part.logsumexp(1) for part in torch.split(logits, at_once)])


def _cached_rows(num_tokens: int) -> int:
    """Rows of float32 logits over `num_tokens` tokens that fit a CPU's cache; at least 1."""
    return max(1, _CACHED_BYTES // (4 * num_tokens))
