"""(torch) The frozen m_0, and how its log-probs of golds are computed.

    requests -> texts (a context, one gold) -> rows of texts that begin alike -> one pass per row

What texts of a row have in common at their beginning is computed once (prefix_tree.py): a dialogue
that meets several golds, the opening of a pair's dialogues. The output layer runs where a gold
token is predicted (position i predicts token i + 1), and nowhere else. A model whose attention
can't be told who sees whom gets one text per row, padded on the right, and the log says so.

Precision, measured against a float32 pass over one sequence at a time (SmolLM2-135M, 40 chats with
golds of 60-240 tokens). `float32`: 0.00002 nats on the worst token. `bfloat16`: 0.007 nats per gold
token, averaged over the worst gold; 0.26 on the worst single token; 0.27 (standard deviation) on a
gold's sum, where dialogues of one pair differ by 7.6. bfloat16 is about twice as fast.

B sequences, T tokens of a row, G gold tokens, P scored positions; log-probs in nats.
"""

import gc
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stargate.actors.modeling.attention import narrow_windows, restore
from stargate.actors.modeling.model import load_model, max_positions, output_layer
from stargate.actors.process.heap import keep_freed_memory, release_freed_memory
from stargate.actors.scoring.gold_logprobs import GoldLogprobs
from stargate.actors.scoring.precision import keep_precise
from stargate.actors.scoring.prefix_tree import Item, Text, group_alike, group_by_length, lay_out
from stargate.actors.scoring.tree_attention import AttentionPlan, make_shareable
from stargate.config.run import Device, ScorerConfig
from stargate.errors import MachineError, one_line
from stargate.types import ScoreRequest

_LOG = logging.getLogger(__name__)

# The largest difference of a log-prob in a shared row from the same text alone, as a share of the
# largest log-prob: bfloat16 rounds to 0.4 %, a text that sees another shows far above.
_MAX_DIFFERENCE = 0.05


@dataclass(frozen=True, slots=True)
class Scored:
    """Per request, per gold: log-probs (G,). And what it took, without and with padding."""

    logprobs: list[tuple[tuple[float, ...], ...]]
    num_tokens: int
    num_padded_tokens: int


@dataclass(frozen=True, slots=True)
class _Pass:
    """Texts and what the model is given for them.

    `places` (P, 2): row and column where each token of each gold is predicted.
    """

    inputs: dict[str, Any]
    places: Tensor
    texts: Sequence[Text]
    num_tokens: int


class GoldModel:
    """A causal LM in evaluation mode that scores golds after contexts."""

    def __init__(
        self, model_dir: str, config: ScorerConfig, device: Device, trust_remote_code: bool
    ) -> None:
        if device == "cpu":
            keep_freed_memory()
        self._device = device
        self._is_half = config.dtype == "bfloat16"
        # A model that is wanted in float32 is loaded so: some make constants in the dtype that they
        # are loaded with (Gemma's scale of embeddings).
        stored = None if self._is_half else torch.float32
        model = load_model(model_dir, stored, device, trust_remote_code).requires_grad_(False)
        rounded = self._is_half and device == "cpu" and output_layer(model).bias is None
        keep_precise(model, torch.bfloat16 if self._is_half else torch.float32, mapped=rounded)
        self._logprobs = GoldLogprobs(model, rounded=rounded)
        if self._is_half:
            # The output layer's float32 product may round its inputs where the hardware does that
            # (they are bfloat16 weights anyway); its sums and results stay float32.
            torch.set_float32_matmul_precision("medium")
        self._max_batch_tokens = config.batch_tokens(device)
        self.max_length = max_positions(model)
        self.num_tokens = self._logprobs.num_tokens
        problem = self._try_sharing(model)
        self._shares = problem is None
        if problem is not None:
            _LOG.warning(
                "scorer: %s: no gold shares its context, which takes longer: %s",
                model_dir,
                problem,
            )
        self.rest()  # loading left memory behind

    def rest(self) -> None:
        """Nothing to score for a while: the memory that passes leave behind is for others."""
        if self._device == "cpu":
            release_freed_memory()

    def move(self, device: str) -> None:
        """Moves the weights: off the GPU, for others to use it, or back to where they compute."""
        self._logprobs.model.to(device)
        if device != self._device and self._device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    @staticmethod
    def set_threads(num_threads: int) -> None:
        """Sets the threads of the calling thread's passes: OpenMP keeps one count per thread."""
        torch.set_num_threads(num_threads)

    def batches(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """Indices of the requests that are scored together, each within max_batch_tokens."""
        items = [(request.context_ids, request.golds) for request in requests]
        return self._groups(items)

    def score(self, requests: Sequence[ScoreRequest]) -> Scored:
        """Scores requests that `batches` put together. Raises MachineError out of GPU memory."""
        asked = [Text(request.context_ids, gold) for request in requests for gold in request.golds]
        # The gold before any turn is the same text for all dialogues of a pair.
        texts = list(dict.fromkeys(asked))
        found: dict[Text, tuple[float, ...]] = {}
        num_tokens = num_padded = 0
        try:
            for group in self._groups([(text.context, (text.gold,)) for text in texts]):
                made = self._make([texts[i] for i in group])
                found |= zip(made.texts, self._run(made), strict=True)
                num_tokens += made.num_tokens
                num_padded += made.inputs["input_ids"].numel()
        except torch.OutOfMemoryError as error:
            raise MachineError(
                "scorer: out of GPU memory; lower scorer.max_batch_tokens, "
                f"now {self._max_batch_tokens}"
            ) from error
        flat = (found[text] for text in asked)
        return Scored(
            logprobs=[tuple(next(flat) for _ in request.golds) for request in requests],
            num_tokens=num_tokens,
            num_padded_tokens=num_padded,
        )

    def _try_sharing(self, model: Any) -> str | None:
        """Lets the model take rows of texts that begin alike. Says why it can't.

        What a config says of a model's layers is not relied upon: the model scores such a row, and
        each text of it must come out as it does alone.
        """
        problem = make_shareable(model)
        if problem is not None:
            return problem
        texts = _trial_texts(self.num_tokens)
        with narrow_windows(model):
            try:
                together = self._run(self._side_by_side(texts))
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                return one_line(error)
            finally:
                restore(model)
            difference = _difference(together, self._run(self._one_by_one(texts)))
        if not difference <= _MAX_DIFFERENCE:  # also if it is NaN
            return f"tried on a row of texts that begin alike: log-probs differ by {difference:.0%}"
        return make_shareable(model)

    def _groups(self, items: Sequence[Item]) -> list[list[int]]:
        """Indices of contexts (with their golds) whose texts make up one pass."""
        group = group_alike if self._shares else group_by_length
        return group(items, self._max_batch_tokens)

    def _make(self, texts: Sequence[Text]) -> _Pass:
        return self._side_by_side(texts) if self._shares else self._one_by_one(texts)

    def _side_by_side(self, texts: Sequence[Text]) -> _Pass:
        """One row, what texts have in common at their beginning only once."""
        row = lay_out(texts)
        inputs = {
            "input_ids": self._tensor([row.ids]),
            "position_ids": self._tensor([row.positions]),
            "plan": AttentionPlan(row.pieces, self._device),
        }
        places = [(0, column) for columns in row.places for column in columns]
        return _Pass(inputs, self._tensor(places), texts, len(row.ids))

    def _one_by_one(self, texts: Sequence[Text]) -> _Pass:
        """One row per text, padded on the right. A causal model never looks there."""
        rows = [[*text.context, *text.gold[:-1]] for text in texts]
        width = max(map(len, rows))
        inputs = {"input_ids": self._tensor([ids + [0] * (width - len(ids)) for ids in rows])}
        places = [
            (r, len(text.context) - 1 + g)
            for r, text in enumerate(texts)
            for g in range(len(text.gold))
        ]
        return _Pass(inputs, self._tensor(places), texts, sum(map(len, rows)))

    def _run(self, made: _Pass) -> list[tuple[float, ...]]:
        """Per text: log-probs (G,)."""
        with (
            torch.inference_mode(),
            torch.autocast(self._device, torch.bfloat16, enabled=self._is_half),
        ):
            rows, columns = made.places.unbind(1)
            wanted = self._tensor([token for text in made.texts for token in text.gold])
            flat = iter(self._logprobs(rows, columns, wanted, **made.inputs).tolist())
        return [tuple(next(flat) for _ in text.gold) for text in made.texts]

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=self._device)


def _trial_texts(num_tokens: int) -> list[Text]:
    """Texts of random tokens that begin alike in several ways."""
    draw = random.Random(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(num_tokens) for _ in range(count))

    opening, first, second = some(9), some(7), some(5)
    return [
        Text(opening + first, some(6)),
        Text(opening + first, some(4)),
        Text(opening + second, some(5)),
        Text(opening, some(1)),
        Text(some(8), some(3)),
    ]


def _difference(some: Sequence[tuple[float, ...]], others: Sequence[tuple[float, ...]]) -> float:
    """The largest difference of a log-prob, as a share of the largest log-prob."""
    one, other = (
        torch.tensor([p for logprobs in part for p in logprobs]) for part in (some, others)
    )
    return float((one - other).abs().max() / other.abs().max())
