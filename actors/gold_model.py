"""(torch) The frozen m_0, and how its log-probs of golds are computed.

One gold: one row of one pass over context + gold, padded on the right. Several golds of one
request: the context once, then all golds on its key/value cache. The output layer runs where a gold
token is predicted (position i predicts token i + 1), and nowhere else.

Precision, measured against a float32 pass over one sequence at a time (SmolLM2-135M, 40 chats with
golds of 60-240 tokens). `float32`: 0.00002 nats on the worst token. `bfloat16`: 0.007 nats per gold
token, averaged over the worst gold; 0.26 on the worst single token; 0.27 (standard deviation) on a
gold's sum, where dialogues of one pair differ by 7.6. bfloat16 is about twice as fast.

B sequences, T context tokens, G gold tokens, P scored positions; log-probs in nats.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stargate.actors.modeling import (
    SelectedLogits,
    keep_precise,
    load_model,
    max_positions,
    token_losses,
)
from stargate.config import ScorerConfig
from stargate.errors import MachineError
from stargate.types import ScoreRequest

# Bytes of float32 logits of one pass. With long golds and a vocabulary of 150,000 they, not the
# tokens, fill the memory.
_MAX_LOGIT_BYTES = 256 * 1024 * 1024
# Cached context tokens of one pass over golds, as a multiple of max_batch_tokens: the golds of a
# request share the context's computation, but each row of the pass holds a copy of its cache.
_MAX_CACHE_SHARE = 4


@dataclass(frozen=True, slots=True)
class Scored:
    """Per request, per gold: log-probs (G,). And what it took, without and with padding."""

    logprobs: list[tuple[tuple[float, ...], ...]]
    num_tokens: int
    num_padded_tokens: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A gold of a request whose first token is scored already; the rest follows on its context."""

    request: int
    gold: int
    ids: tuple[int, ...]


class GoldModel:
    """A causal LM in evaluation mode that scores golds after contexts."""

    def __init__(
        self, model_dir: str, config: ScorerConfig, device: str, trust_remote_code: bool
    ) -> None:
        model = load_model(model_dir, None, device, trust_remote_code).requires_grad_(False)
        self._logits = SelectedLogits(model)
        self._device = device
        self._is_half = config.dtype == "bfloat16"
        keep_precise(model, torch.bfloat16 if self._is_half else torch.float32)
        self._max_batch_tokens = config.max_batch_tokens
        self.max_length = max_positions(model)
        self.num_tokens = self._logits.num_tokens
        self._max_rows = max(1, _MAX_LOGIT_BYTES // (4 * self.num_tokens))

    @staticmethod
    def set_threads(num_threads: int) -> None:
        """Sets the threads of the calling thread's passes: OpenMP keeps one count per thread."""
        torch.set_num_threads(num_threads)

    def batches(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """Indices of the requests that are scored together, each pass within max_batch_tokens."""
        several = [i for i, request in enumerate(requests) if len(request.golds) > 1]
        single = [i for i, request in enumerate(requests) if len(request.golds) <= 1]
        groups = []
        for members, of_gold in ((single, 1), (several, 0)):
            costs = []
            for i in members:
                gold = sum(map(len, requests[i].golds)) * of_gold
                costs.append((len(requests[i].context_ids) + gold, max(gold, 1)))
            plans = pack(costs, self._max_batch_tokens, self._max_rows)
            groups += [[members[k] for k in plan] for plan in plans]
        return groups

    def score(self, requests: Sequence[ScoreRequest]) -> Scored:
        """Scores requests that `batches` put together. Raises MachineError out of GPU memory."""
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self._device, torch.bfloat16, enabled=self._is_half),
            ):
                if any(len(request.golds) > 1 for request in requests):
                    return self._score_several(requests)
                return self._score_single(requests)
        except torch.OutOfMemoryError as error:
            raise MachineError(
                "scorer: out of GPU memory; lower scorer.max_batch_tokens, "
                f"now {self._max_batch_tokens}"
            ) from error

    def _score_single(self, requests: Sequence[ScoreRequest]) -> Scored:
        """One pass, right-padded. A causal model never looks right, so no mask is needed."""
        golds = [request.golds[0] if request.golds else () for request in requests]
        # The last gold token predicts nothing that is asked for.
        inputs = [
            (*request.context_ids, *gold[:-1])
            for request, gold in zip(requests, golds, strict=True)
        ]
        starts = [len(request.context_ids) - 1 for request in requests]
        found = self._target_logprobs(
            starts, golds, input_ids=self._padded(inputs), use_cache=False
        )
        return Scored(
            logprobs=[(tuple(f),) if r.golds else () for f, r in zip(found, requests, strict=True)],
            num_tokens=sum(map(len, inputs)),
            num_padded_tokens=len(inputs) * max(map(len, inputs)),
        )

    def _score_several(self, requests: Sequence[ScoreRequest]) -> Scored:
        """Contexts in one pass, left-padded: golds then continue all of them at the same column."""
        contexts = [request.context_ids for request in requests]
        lengths = torch.tensor([len(ids) for ids in contexts], device=self._device)
        width = max(map(len, contexts))
        columns = torch.arange(width, device=self._device)
        mask = (columns >= width - lengths[:, None]).long()  # (B, T)
        logits, cache = self._logits(
            torch.arange(len(contexts), device=self._device),
            torch.full((len(contexts),), width - 1, device=self._device),
            input_ids=self._padded(contexts, left=True),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        )
        first = logits.log_softmax(-1)  # (B, V): every gold's first token is predicted here
        found = [[[float(first[i, gold[0]])] for gold in r.golds] for i, r in enumerate(requests)]
        rows = [
            _Row(i, g, gold)
            for i, request in enumerate(requests)
            for g, gold in enumerate(request.golds)
            if len(gold) > 1
        ]
        num_tokens, num_padded = sum(map(len, contexts)), len(contexts) * width
        max_rows = max(1, _MAX_CACHE_SHARE * self._max_batch_tokens // width)
        costs = [(len(row.ids), len(row.ids)) for row in rows]
        for plan in pack(costs, self._max_batch_tokens, self._max_rows, max_rows):
            chosen = [rows[k] for k in plan]
            for row, rest in zip(chosen, self._continue(chosen, mask, cache), strict=True):
                found[row.request][row.gold] += rest
            num_tokens += sum(len(row.ids) - 1 for row in chosen)
            num_padded += len(chosen) * max(len(row.ids) - 1 for row in chosen)
        return Scored(
            [tuple(tuple(gold) for gold in golds) for golds in found], num_tokens, num_padded
        )

    def _continue(self, rows: Sequence[_Row], mask: Tensor, cache: Any) -> list[list[float]]:
        """Log-probs of each gold's tokens after its first, on copies of the contexts' cache."""
        chosen = torch.tensor([row.request for row in rows], device=self._device)
        # Selecting and appending make new tensors, so copying the cache's outline keeps it whole.
        own = copy.copy(cache)
        own.layers = [copy.copy(layer) for layer in cache.layers]
        own.batch_select_indices(chosen)
        input_ids = self._padded([row.ids[:-1] for row in rows])
        context = mask[chosen]
        steps = torch.arange(input_ids.shape[1], device=self._device)
        return self._target_logprobs(
            [0] * len(rows),
            [row.ids[1:] for row in rows],
            input_ids=input_ids,
            attention_mask=torch.cat([context, torch.ones_like(input_ids)], dim=1),
            position_ids=context.sum(1, keepdim=True) + steps,
            past_key_values=own,
            use_cache=True,
        )

    def _target_logprobs(
        self, starts: Sequence[int], targets: Sequence[Sequence[int]], **inputs: Any
    ) -> list[list[float]]:
        """Per row r: log p of targets[r][k], predicted at column starts[r] + k of the input."""
        places = [
            (row, start + k, target)
            for row, (start, of_row) in enumerate(zip(starts, targets, strict=True))
            for k, target in enumerate(of_row)
        ]
        if not places:
            return [[] for _ in targets]
        rows, columns, wanted = torch.tensor(places, device=self._device).unbind(1)
        logits, _ = self._logits(rows, columns, **inputs)
        flat = iter((-token_losses(logits, wanted)).tolist())
        return [[next(flat) for _ in of_row] for of_row in targets]

    def _padded(self, sequences: Sequence[Sequence[int]], left: bool = False) -> Tensor:
        """(B, T) ids. What the padding holds doesn't matter: nothing looks at it."""
        width = max(map(len, sequences))
        padded = [
            [*([0] * (width - len(ids))), *ids] if left else [*ids, *([0] * (width - len(ids)))]
            for ids in sequences
        ]
        return torch.tensor(padded, device=self._device)


def pack(
    costs: Iterable[tuple[int, int]], max_tokens: int, max_rows: int, max_size: int | None = None
) -> list[list[int]]:
    """Indices grouped by length, longest first.

    `costs` are (tokens, scored positions) of each item. A group has at most `max_tokens` padded
    tokens, `max_rows` scored positions and `max_size` items; an item too large for that is alone.
    """
    items = list(costs)
    groups: list[list[int]] = []
    rows = 0
    for i in sorted(range(len(items)), key=lambda i: (-items[i][0], i)):
        group = groups[-1] if groups else []
        fits = (
            bool(group)
            and items[group[0]][0] * (len(group) + 1) <= max_tokens
            and rows + items[i][1] <= max_rows
            and (max_size is None or len(group) < max_size)
        )
        if fits:
            group.append(i)
            rows += items[i][1]
        else:
            groups.append([i])
            rows = items[i][1]
    return groups
