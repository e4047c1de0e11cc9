"""(torch) The frozen m_0, and how its log-probs of golds are computed.

    context gold_1 gold_2 ... gold_n      one row of one pass, padded on the right

Golds of one request share the context's computation: they stand side by side in its row, each sees
the context and itself (a mask says so) and has the positions that it would have alone. The output
layer runs where a gold token is predicted (position i predicts token i + 1), and nowhere else.

Precision, measured against a float32 pass over one sequence at a time (SmolLM2-135M, 40 chats with
golds of 60-240 tokens). `float32`: 0.00002 nats on the worst token. `bfloat16`: 0.007 nats per gold
token, averaged over the worst gold; 0.26 on the worst single token; 0.27 (standard deviation) on a
gold's sum, where dialogues of one pair differ by 7.6. bfloat16 is about twice as fast.

B sequences, T tokens of a row, G gold tokens, P scored positions; log-probs in nats.
"""

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
    sees_everything,
    token_losses,
)
from stargate.config import ScorerConfig
from stargate.errors import MachineError
from stargate.types import ScoreRequest

# Bytes of float32 logits of one pass. With long golds and a vocabulary of 150,000 they, not the
# tokens, fill the memory.
_MAX_LOGIT_BYTES = 256 * 1024 * 1024
_CONTEXT, _PADDING = 0, -1  # segments of a row; golds are 1, 2, ...


@dataclass(frozen=True, slots=True)
class Scored:
    """Per request, per gold: log-probs (G,). And what it took, without and with padding."""

    logprobs: list[tuple[tuple[float, ...], ...]]
    num_tokens: int
    num_padded_tokens: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A context and some of its request's golds, by index."""

    request: int
    context: tuple[int, ...]
    golds: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The last token of a gold predicts nothing that is asked for."""
        return self.context + tuple(i for gold in self.texts for i in gold[:-1])

    @property
    def segments(self) -> list[int]:
        """Of each token: the context, or which gold."""
        found = [_CONTEXT] * len(self.context)
        for number, gold in enumerate(self.texts, start=1):
            found += [number] * (len(gold) - 1)
        return found

    @property
    def positions(self) -> list[int]:
        """Every gold begins where the context ends."""
        found = list(range(len(self.context)))
        for gold in self.texts:
            found += range(len(self.context), len(self.context) + len(gold) - 1)
        return found

    @property
    def columns(self) -> list[int]:
        """Where each token of each gold is predicted: its first by the context's last token."""
        found: list[int] = []
        start = len(self.context)
        for gold in self.texts:
            found += [len(self.context) - 1, *range(start, start + len(gold) - 1)]
            start += len(gold) - 1
        return found

    @property
    def cost(self) -> tuple[int, int]:
        """Tokens, and scored positions."""
        num_golds = sum(map(len, self.texts))
        return len(self.context) + num_golds - len(self.texts), num_golds


class GoldModel:
    """A causal LM in evaluation mode that scores golds after contexts."""

    def __init__(
        self, model_dir: str, config: ScorerConfig, device: str, trust_remote_code: bool
    ) -> None:
        model = load_model(model_dir, None, device, trust_remote_code).requires_grad_(False)
        self._shares = sees_everything(model)
        self._logits = SelectedLogits(model)
        self._device = device
        self._is_half = config.dtype == "bfloat16"
        keep_precise(model, torch.bfloat16 if self._is_half else torch.float32)
        if self._is_half:
            # The output layer's float32 product may round its inputs where the hardware does that
            # (they are bfloat16 weights anyway); its sums and results stay float32. On CPUs this
            # also chooses a kernel that is twice as fast.
            torch.set_float32_matmul_precision("medium")
        self._max_batch_tokens = config.max_batch_tokens
        self.max_length = max_positions(model)
        self.num_tokens = self._logits.num_tokens
        self._max_rows = max(1, _MAX_LOGIT_BYTES // (4 * self.num_tokens))

    @staticmethod
    def set_threads(num_threads: int) -> None:
        """Sets the threads of the calling thread's passes: OpenMP keeps one count per thread."""
        torch.set_num_threads(num_threads)

    def batches(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """Indices of the requests that are scored together, each within max_batch_tokens."""
        costs = []
        for request in requests:
            golds = sum(map(len, request.golds))
            costs.append((len(request.context_ids) + golds, max(golds, 1)))
        return pack(costs, self._max_batch_tokens, self._max_rows)

    def score(self, requests: Sequence[ScoreRequest]) -> Scored:
        """Scores requests that `batches` put together. Raises MachineError out of GPU memory."""
        rows = [row for i, request in enumerate(requests) for row in self._rows(i, request)]
        found: list[dict[int, tuple[float, ...]]] = [{} for _ in requests]
        num_padded = 0
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self._device, torch.bfloat16, enabled=self._is_half),
            ):
                for plan in pack(
                    [row.cost for row in rows], self._max_batch_tokens, self._max_rows
                ):
                    chosen = [rows[k] for k in plan]
                    for row, logprobs in zip(chosen, self._score_rows(chosen), strict=True):
                        found[row.request].update(zip(row.golds, logprobs, strict=True))
                    num_padded += len(chosen) * max(row.cost[0] for row in chosen)
        except torch.OutOfMemoryError as error:
            raise MachineError(
                "scorer: out of GPU memory; lower scorer.max_batch_tokens, "
                f"now {self._max_batch_tokens}"
            ) from error
        return Scored(
            logprobs=[tuple(golds[g] for g in sorted(golds)) for golds in found],
            num_tokens=sum(row.cost[0] for row in rows),
            num_padded_tokens=num_padded,
        )

    def _rows(self, number: int, request: ScoreRequest) -> list[_Row]:
        """The rows of one request: as many golds in each as fit beside their context.

        One gold per row where the model's attention can't be told by a mask who sees whom.
        """
        rows: list[_Row] = []
        members: list[int] = []

        def close() -> None:
            if members:
                texts = tuple(request.golds[g] for g in members)
                rows.append(_Row(number, request.context_ids, tuple(members), texts))
                members.clear()

        room = 0
        for g, gold in enumerate(request.golds):
            if not members or not self._shares or len(gold) > room:
                close()
                room = self._max_batch_tokens - len(request.context_ids)
            members.append(g)
            room -= len(gold)
        close()
        return rows

    def _score_rows(self, rows: Sequence[_Row]) -> list[list[tuple[float, ...]]]:
        """One pass. Per row, per gold: log-probs (G,)."""
        places = [(r, column) for r, row in enumerate(rows) for column in row.columns]
        targets = [token for row in rows for gold in row.texts for token in gold]
        where = torch.tensor(places, device=self._device)
        inputs: dict[str, Any] = {"input_ids": self._padded([row.ids for row in rows])}
        if any(len(row.texts) > 1 for row in rows):
            segments = self._padded([row.segments for row in rows], _PADDING)
            inputs["attention_mask"] = _visible(segments)
            inputs["position_ids"] = self._padded([row.positions for row in rows])
        # Without a mask: a causal model never looks right, where the padding is.
        logits, _ = self._logits(where[:, 0], where[:, 1], use_cache=False, **inputs)
        wanted = torch.tensor(targets, device=self._device)
        flat = iter((-token_losses(logits, wanted)).tolist())
        return [[tuple(next(flat) for _ in gold) for gold in row.texts] for row in rows]

    def _padded(self, sequences: Sequence[Sequence[int]], padding: int = 0) -> Tensor:
        """(B, T), padded on the right."""
        width = max(map(len, sequences))
        rows = [[*ids, *([padding] * (width - len(ids)))] for ids in sequences]
        return torch.tensor(rows, device=self._device)


def _visible(segments: Tensor) -> Tensor:
    """Which token sees which, (B, 1, T, T): itself, and what stands before it in the context or in
    its own segment.
    """
    own = segments[:, :, None] == segments[:, None, :]
    context = segments[:, None, :] == _CONTEXT
    size = segments.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=segments.device).tril()
    return ((own | context) & causal)[:, None]


def pack(costs: Iterable[tuple[int, int]], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Indices grouped by length, longest first.

    `costs` are (tokens, scored positions) of each item. A group has at most `max_tokens` padded
    tokens and `max_rows` scored positions; an item too large for that is alone.
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
        )
        if fits:
            group.append(i)
            rows += items[i][1]
        else:
            groups.append([i])
            rows = items[i][1]
    return groups
