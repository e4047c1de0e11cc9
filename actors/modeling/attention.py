"""(torch) Giving a model an attention of ours: what packing.py and tree_attention.py share.

    obstacle(model) -> why not, from what its config says
    replace(model, name, attention) -> every layer calls `attention`; restore(model) undoes it

Whether the model then computes what it should must be tried: both callers do.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The attention that models are loaded with.
_OWN = "sdpa"
# What torch's flash attention takes: dimensions of a head, and GPUs from Ampere on.
_MAX_FLASH_DIMENSIONS = 256
_MIN_FLASH_CAPABILITY = (8, 0)


def obstacle(model: Any) -> str | None:
    """Why the model's attention can't be replaced; None if nothing speaks against it."""
    if not _sees_everything(model):
        return "not all of its layers attend to the whole text"
    if not model.is_backend_compatible():
        return "its code has an attention of its own"
    return None


def _sees_everything(model: Any) -> bool:
    """Whether every layer attends to all tokens that a mask allows.

    Not so with sliding windows or recurrent layers: there a mask can't let several texts that
    stand side by side follow one context.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds:
        plain = all(kind == "full_attention" for kind in kinds)
    else:
        plain = getattr(config, "sliding_window", None) is None
    return plain and model.config._attn_implementation == _OWN


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
