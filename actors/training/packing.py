"""(torch) Several examples side by side in one row, each attending to itself alone.

    examples of a micro-batch -> pack: one row without padding, positions starting at 0 in each
    make_packable(model): its attention is replaced by one done per example, and put to a test
    lengths of the examples -> every attention layer, as a keyword of the model's forward

All but the attention works on single tokens, so a row of 1,000 tokens costs what 1,000 tokens cost.
A mask over the whole row would do the same, but attention would be done for all pairs of tokens in
it, and on a CPU a mask also keeps torch from its fast kernel.

T tokens of a row, H heads, D dimensions of a head.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stargate.actors.modeling.attention import (
    has_varlen,
    narrow_windows,
    obstacle,
    replace,
    restore,
    window_size,
)
from stargate.errors import one_line

_NAME = "stargate_packed"
# Lengths of the texts that a model is tried with, and the largest difference to the same texts one
# by one, as a share of the largest logit: bfloat16 rounds to 0.4 %, a leak shows far above.
_TRIED_LENGTHS = (7, 12, 9)
_MAX_DIFFERENCE = 0.05
# attend_in_blocks: queries of a block, and the longest example: it keeps T x T weights per head.
_BLOCK = 128
_MAX_BLOCK_LENGTH = 1024


def pack(examples: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and positions of a row, (1, T) each."""
    ids = torch.tensor([[token for example in examples for token in example]])
    positions = torch.cat([torch.arange(len(example)) for example in examples])[None]
    return ids, positions


def make_packable(model: Any, logits: Callable[..., Tensor] | None = None) -> str | None:
    """Makes the model take packed rows. Says why it can't, and leaves it as it was.

    What a config says of a model's layers is not relied upon: the model computes a packed row, and
    each text in it must come out as it does alone. So it must be where it will compute, in the
    precision in which it will: other kernels may do other things. `logits` are the model's, (T, V)
    of one row, for its inputs; None: it is called itself.
    """
    if (problem := obstacle(model)) is not None:
        return problem
    try:
        with narrow_windows(model):
            difference = _difference(model, logits or partial(_logits, model))
        same = difference <= _MAX_DIFFERENCE  # not so if it is NaN
        problem = None if same else f"logits differ by {difference:.0%}"
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        problem = one_line(error)
    if problem is not None:
        restore(model)
        return f"tried on a packed row: {problem}"
    return None


@torch.no_grad()
def _difference(model: Any, logits: Callable[..., Tensor]) -> float:
    """The largest difference of a logit in a packed row from the same text alone, as a share.

    Leaves the model with the packed attention.
    """
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    texts = [
        torch.randint(vocabulary, (length,), generator=generator).tolist()
        for length in _TRIED_LENGTHS
    ]
    device = model.device
    alone = [logits(input_ids=pack([text])[0].to(device)) for text in texts]
    replace(model, _NAME, _attention)
    ids, positions = (tensor.to(device) for tensor in pack(texts))
    packed = logits(input_ids=ids, position_ids=positions, packed_lengths=_TRIED_LENGTHS)
    expected = torch.cat(alone)
    return float((packed - expected).abs().max() / expected.abs().max())


def _logits(model: Any, **inputs: Any) -> Tensor:
    found: Tensor = model(use_cache=False, **inputs).logits[0]
    return found


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_lengths: tuple[int, ...],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each example; query (1, H, T, D) -> (1, T, H, D).

    `others` are keywords that transformers' own attention through SDPA ignores as well.
    """
    if attention_mask is not None:
        raise ValueError("a packed row takes no mask")
    if dropout == 0.0 and has_varlen(query, value):
        return _varlen(query, key, value, packed_lengths, scaling, sliding_window), None
    parts = zip(
        query.split_with_sizes(packed_lengths, 2),
        key.split_with_sizes(packed_lengths, 2),
        value.split_with_sizes(packed_lengths, 2),
        strict=True,
    )
    attended = [_attend(q, k, v, dropout, scaling, sliding_window) for q, k, v in parts]
    return torch.cat(attended, 1), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention of one example; (1, H, T, D) -> (1, T, H, D)."""
    length = query.shape[2]
    if window is not None and window >= length:
        window = None
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if on_cpu and dropout == 0.0 and length <= _MAX_BLOCK_LENGTH:
        return attend_in_blocks(query, key, value, scale, window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        # torch's fast kernels want as many heads in all three.
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = None
    if window is not None:
        mask = query.new_ones(length, length, dtype=torch.bool).tril_().triu_(1 - window)
    attended = functional.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout, is_causal=mask is None, scale=scale
    )
    return attended.transpose(1, 2)


def attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None = None
) -> Tensor:
    """Causal attention of one example by plain products, for bfloat16 on a CPU.

    torch's own kernel makes bfloat16 products of this size so slowly that it takes a third of a
    training step. On SmolLM2-135M this one makes forward and backward 1.5 times faster, with the
    same error of the gradient against float32 (4.0 %). Blocks of queries leave out most of what is
    masked. (1, H, T, D) -> (1, T, H, D).
    """
    num_heads, length, size = query.shape[1:]
    num_keys = key.shape[1]
    groups = num_heads // num_keys
    # The heads that share a key are one matrix.
    queries = query.reshape(num_keys, groups, length, size)
    keys, values = key[0].transpose(1, 2), value[0]
    blocks = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        block = queries[:, :, start:end].reshape(num_keys, groups * (end - start), size)
        low = 0 if window is None else max(0, start - window + 1)
        mask = _causal_mask(groups, start - low, end - low, window, query.dtype)
        mask = mask.expand(num_keys, -1, -1)
        alpha = size**-0.5 if scale is None else scale
        weights = torch.baddbmm(mask, block, keys[:, :, low:end], alpha=alpha).softmax(-1)
        attended = torch.bmm(weights, values[:, low:end])
        blocks.append(attended.view(num_keys, groups, end - start, -1))
    return torch.cat(blocks, 2).reshape(1, num_heads, length, -1).transpose(1, 2)


@lru_cache(maxsize=256)
def _causal_mask(
    groups: int, start: int, end: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    """What the scores of queries start..end, once per group, get added; to hide later keys, and
    those before the window.
    """
    hidden = torch.full((end - start, end), -torch.inf, dtype=dtype)
    mask = hidden.triu(1 + start)
    if window is not None:
        mask += hidden.tril(start - window)
    return mask.repeat(groups, 1)[None]


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = _ends(lengths, query.device)
    longest = max(lengths)
    q, k, v = (whole[0].transpose(0, 1) for whole in (query, key, value))
    attended = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=window_size(window),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended[None]


@lru_cache(maxsize=4)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the examples begin and the last one ends, for all layers of a forward pass."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
