"""(torch) New weights straight into the layers of a CPU engine, where that is known to be right.

vLLM's layerwise reload serves every model; per tensor it counts, buffers and allocates, which takes
longer here than moving the bytes. A first push goes through it. When weight_check.py then finds
that every parameter holds just the file's tensor of its name (or, of a fused layer, its parts'
tensors one below the other), later pushes do only that, and are checked in the same way:

    a parameter that is there      -> values are copied into it
    a weight that was packed away  -> the file's mapped bytes are packed as they are
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stargate.actors.engines.weight_check import file_names


@torch.no_grad()
def load_directly(model: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Gives every parameter its new values; returns the names of those tensors that were used.

    Raises ValueError, with the model half updated, for a parameter that no tensor is for.
    """
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    used: set[str] = set()
    done: set[int] = set()
    for prefix, module in model.named_modules():
        hollow: dict[str, nn.Parameter] = {}
        for leaf, parameter in list(module._parameters.items()):
            if parameter is None or id(parameter) in done:
                continue  # a tied weight has its values; what is packed of it is made anew below
            names = file_names(prefix, leaf, packed, tensors)
            if names is None:
                raise ValueError(f"no value for {prefix}.{leaf}")
            used.update(names)
            parts = [tensors[name] for name in names]
            values = parts[0] if len(parts) == 1 else torch.cat(parts)
            done.add(id(parameter))
            if parameter.numel():
                # A vocabulary is padded with rows that no file has.
                parameter[: values.shape[0]].copy_(values)
            else:
                hollow[leaf] = parameter
                values = values.to(parameter.dtype)
                module._parameters[leaf] = nn.Parameter(values, requires_grad=False)
        method: Any = getattr(module, "quant_method", None)
        if module._parameters and hasattr(method, "process_weights_after_loading"):
            method.process_weights_after_loading(module)
        for leaf, parameter in hollow.items():
            # The one that was there has what vLLM knows of it (its loader, its dimensions).
            module._parameters[leaf] = parameter
    return used
