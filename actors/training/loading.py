"""(torch, DeepSpeed) The model of a training stage: loaded, given adapters, and put on the devices.

Under ZeRO-3 no rank but the first reads it, and no device ever holds it whole:

    rank 0: the folder -> main memory;  the others: the same model without memory (torch's "meta")
    one parameter at a time: rank 0's values -> every rank's device -> each keeps its part
"""

from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch
from torch import distributed, nn

from stargate.actors.modeling.model import build_model, load_model
from stargate.actors.training import lora as adapters
from stargate.actors.training.spec import TrainerSpec
from stargate.errors import ConfigError, ModelError

# Every rank's message on every rank (backend.py: Backend.exchange).
Exchange = Callable[[Mapping[str, Any]], list[dict[str, Any]]]


def load(spec: TrainerSpec, start_model_dir: str, exchange: Exchange) -> Any:
    """The model as it will learn, in main memory; without memory on ranks that need not read it.

    Raises ModelError or ConfigError, on every rank.
    """
    first = spec.rank == 0 or spec.config.zero_stage < 3
    problem: str | None = None
    model: Any = None
    parts: list[tuple[str, ...]] = []
    try:
        if first:
            model = load_model(start_model_dir, None, "cpu", spec.trust_remote_code)
        else:
            with torch.device("meta"):
                model = build_model(start_model_dir, spec.trust_remote_code)
        parts = [(n, str(p.shape)) for n, p in model.named_parameters()]
        parts += [(n, str(b.shape), str(b.dtype)) for n, b in model.named_buffers()]
    except ModelError as error:
        problem = str(error)
    # What one rank can't do, the others would wait for.
    told = exchange({"problem": problem, "parts": parts})
    problem = next((one["problem"] for one in told if one["problem"]), None)
    if problem is None and any(one["parts"] != told[0]["parts"] for one in told):
        problem = (
            f"model {start_model_dir}: built from its config, it has other weights than in its "
            "files; trainer.zero_stage=2 needs no building"
        )
    if problem is not None:
        raise ModelError(problem)
    config = spec.config
    if config.lora is not None:
        adapters.add_adapters(model, config.lora)
    if config.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"trainer.activation_checkpointing: model {model.config.model_type} does not "
                "support it; turn it off"
            )
        # Layers keep only their input, and compute the rest again in the backward pass.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def share_out(model: Any, settings: Mapping[str, Any], dtype: torch.dtype, device: Any) -> None:
    """Leaves each rank its part of every parameter, in `dtype`, on `device` (ZeRO-3).

    `settings` are DeepSpeed's. Tied parameters stay tied. Buffers are whole on every rank.
    """
    convert: Callable[[list[nn.Parameter]], None] | None = None
    shared: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in shared:
                shared[id(parameter)] = own = _on_device(parameter, dtype, device)
                if convert is None:
                    holder = nn.Module()
                    holder.register_parameter(name, own)
                    deepspeed.zero.Init(holder, config_dict_or_path=dict(settings), dtype=dtype)
                    convert = own.convert_to_zero_parameters  # type: ignore[attr-defined]  # its own
                else:
                    convert([own])
            module._parameters[name] = shared[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                empty = torch.empty_like(buffer, device=device)
                module._buffers[name] = own_buffer = empty if buffer.is_meta else buffer.to(device)
                distributed.broadcast(own_buffer, 0)


def _on_device(parameter: nn.Parameter, dtype: torch.dtype, device: Any) -> nn.Parameter:
    """The parameter itself, moved; or one that has memory, whose values are still to come."""
    if parameter.is_meta:
        empty = torch.empty(parameter.shape, dtype=dtype, device=device)
        return nn.Parameter(empty, requires_grad=parameter.requires_grad)
    parameter.data = parameter.data.to(device, dtype)
    return parameter
