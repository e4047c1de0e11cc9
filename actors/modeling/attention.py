"""(torch) Giving a model an attention of ours: what packing.py and tree_attention.py share.

    obstacle(model) -> why not, from what its config says
    replace(model, name, attention) -> every layer calls `attention`; restore(model) undoes it

Whether the model then computes what it should must be tried, within narrow_windows: both callers
do. A layer with a window tells its attention by the keyword `sliding_window`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# The attention that models are loaded with.
_OWN = "sdpa"
# What torch's flash attention takes: dimensions of a head, and GPUs from Ampere on.
_MAX_FLASH_DIMENSIONS = 256
_MIN_FLASH_CAPABILITY = (8, 0)


# What a layer may see of what stands before it in a text.
_KINDS = frozenset({"full_attention", "sliding_attention"})
# Tokens that a layer with a window sees in a trial, whose texts are shorter than real windows.
_TRIED_WINDOW = 4


def obstacle(model: Any) -> str | None:
    """Why the model's attention can't be replaced; None if nothing speaks against it."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if kinds:
        return f"some of its layers are of another kind: {', '.join(sorted(kinds))}"
    if any(_window(layer) != _window(config) for layer in _layers_with_windows(model)):
        return "some of its layers have windows of their own"
    if model.config._attn_implementation != _OWN or not model.is_backend_compatible():
        return "its code has an attention of its own"
    return None


@contextmanager
def narrow_windows(model: Any) -> Iterator[None]:
    """Meanwhile layers that look back for a number of tokens look back for a few, in a trial."""
    config = model.config.get_text_config()
    owners = [*_layers_with_windows(model), *([config] if _window(config) else [])]
    window = _window(config)
    for owner in owners:
        owner.sliding_window = _TRIED_WINDOW
    try:
        yield
    finally:
        for owner in owners:
            owner.sliding_window = window


def _layers_with_windows(model: Any) -> list[Any]:
    return [module for module in model.modules() if _window(module) is not None]


def _window(owner: Any) -> int | None:
    """How many tokens, its own among them, a token sees there; None if all before it."""
    window: int | None = getattr(owner, "sliding_window", None)
    return window


def replace(model: Any, name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Has every layer call `attention`, which transformers then knows by this name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    model.set_attn_implementation(name)


def restore(model: Any) -> None:
    """Gives the model its own attention back."""
    model.set_attn_implementation(_OWN)


def has_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether torch's flash attention for several lengths runs here: one kernel for the row."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= _MAX_FLASH_DIMENSIONS
        and torch.cuda.get_device_capability(query.device) >= _MIN_FLASH_CAPABILITY
    )


def window_size(window: int | None) -> tuple[int, int]:
    """What torch's varlen_attn is told: how many tokens to the left and to the right are seen.

    Where more are seen than ask, the last of both stand together.
    """
    return (-1 if window is None else window - 1, 0)
