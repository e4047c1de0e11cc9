"""(torch) Attention within a row of texts that share their beginnings (prefix_tree.py).

    make_shareable(model): the model's attention becomes the one below
    AttentionPlan(pieces, device) -> every attention layer, as the keyword `plan` of its forward

All but the attention works on single tokens, so a row of 1,000 tokens costs what 1,000 tokens cost.
A mask over the whole row would do the same, for all pairs of tokens in it.

On CPUs the two products of a piece are done by torch.bmm: torch's flash attention took 12.8 ms
where these take 5.9 (1,008 tokens, 9 heads of 64, bfloat16, one core with AVX-512), because it
multiplies in small blocks.

T tokens of a row, Q tokens that ask, S tokens that they see, H heads, K key/value heads (each
serves H / K heads), D dimensions of a head.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stargate.actors.modeling.attention import has_varlen, obstacle, replace, window_size
from stargate.actors.scoring.prefix_tree import Piece

_NAME = "stargate_tree"
# Tokens of a piece that ask at once. Their scores stay in a core's cache, and what stands behind
# them in a long piece is not computed.
_MAX_ASKING = 256
# Keys that ask for a softmax over a multiple of so many: over 351 torch's takes 1.7 times what it
# takes over 352 (bfloat16, AVX-512). The rest is filled with keys that the mask hides.
_WIDTH = 32


class AttentionPlan:
    """Who sees whom in one row: made once per pass, used by every layer."""

    def __init__(self, pieces: Sequence[Piece], device: str) -> None:
        self.pieces = tuple(pieces)
        self._device = device
        self._masks: dict[tuple[int, int, int, int, int | None, torch.dtype], Tensor] = {}

    def mask(
        self,
        group: int,
        asking: int,
        seen: int,
        width: int,
        window: int | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """To be added to the scores of `group` heads, (1, group * Q, width).

        The last Q of the first S tokens ask; each sees up to itself, `window` tokens if not None.
        """
        key = (group, asking, seen, width, window, dtype)
        if key not in self._masks:
            ones = torch.ones(asking, width, dtype=torch.bool, device=self._device)
            hidden = ones.triu(seen - asking + 1)
            if window is not None:
                hidden |= ones.tril(seen - asking - window)
            mask = torch.zeros(asking, width, dtype=dtype, device=self._device)
            self._masks[key] = mask.masked_fill_(hidden, -torch.inf).repeat(group, 1)[None]
        return self._masks[key]

    @cached_property
    def seen(self) -> Tensor:
        """Places of what each piece sees, one piece after the other."""
        places = [i for piece in self.pieces for span in piece.seen for i in range(*span)]
        return torch.tensor(places, device=self._device)

    @cached_property
    def longest(self) -> tuple[int, int]:
        """The largest Q and S of a piece."""
        return max(p.stop - p.start for p in self.pieces), max(map(_num_seen, self.pieces))

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Where the pieces and where what they see begin and the last one ends."""
        asking = [piece.stop - piece.start for piece in self.pieces]
        seen = list(map(_num_seen, self.pieces))
        return self._ends(asking), self._ends(seen)

    def _ends(self, lengths: list[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self._device)


def make_shareable(model: Any) -> str | None:
    """Makes the model take rows with a AttentionPlan. Says why it can't, and leaves it as it was.

    Whether it then computes what it should must be tried: gold_model.py does.
    """
    if (problem := obstacle(model)) is None:
        replace(model, _NAME, _attention)
    return problem


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D).

    `others` are keywords that transformers' own attention through SDPA ignores as well.
    """
    if attention_mask is not None:
        raise ValueError("a row of shared texts takes no mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # The value is what autocast made of it; rotary embeddings leave the other two in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if has_varlen(query, value):
        return _varlen(query, key, value, plan, scale, sliding_window), None
    return _by_pieces(query[0], key[0], value[0], plan, scale, sliding_window)[None], None


def _by_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
) -> Tensor:
    """(H, T, D), (K, T, D) twice -> (T, H, D)."""
    num_heads, num_tokens, _ = query.shape
    num_shared = key.shape[0]
    group = num_heads // num_shared
    found = value.new_empty(num_tokens, num_shared, group, value.shape[-1])
    for piece in plan.pieces:
        num_seen = _num_seen(piece)
        # Its own text's tokens: a NaN of another would come through the mask.
        first, end = piece.seen[0]
        spans = (*piece.seen, (first, min(end, first + -num_seen % _WIDTH)))
        keys = torch.cat([key[:, low:high] for low, high in spans], 1)
        values = torch.cat([value[:, low:high] for low, high in spans], 1)
        num_before = num_seen - (piece.stop - piece.start)
        for start in range(piece.start, piece.stop, _MAX_ASKING):
            stop = min(start + _MAX_ASKING, piece.stop)
            seen = num_before + stop - piece.start
            # The heads that share a key are so many more questions to it.
            asked = query[:, start:stop].reshape(num_shared, -1, query.shape[-1])
            width = min(seen + -seen % _WIDTH, keys.shape[1])
            # What stands before the first one's window; the rest keeps its even width.
            out = 0 if window is None else max(0, seen - (stop - start) - window + 1)
            part = slice(out - out % _WIDTH, width)
            size = (stop - start, seen - part.start, width - part.start)
            mask = plan.mask(group, *size, window, value.dtype)
            scores = torch.baddbmm(mask, asked, keys[:, part].transpose(1, 2), alpha=scale)
            mixed = torch.bmm(scores.softmax(-1), values[:, part])
            found[start:stop] = mixed.view(num_shared, group, stop - start, -1).permute(2, 0, 1, 3)
    return found.view(num_tokens, num_heads, -1)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    asking, seen = plan.ends
    most_asking, most_seen = plan.longest
    mixed: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[plan.seen],
        value[0].transpose(0, 1)[plan.seen],
        asking,
        seen,
        most_asking,
        most_seen,
        scale=scale,
        window_size=window_size(window),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    whole: Tensor = mixed[None]
    return whole


def _num_seen(piece: Piece) -> int:
    return sum(high - low for low, high in piece.seen)
