"""(torch, peft) LoRA: few weights learn beside the frozen ones, and are merged before saving.

    add_adapters(model) -> every chosen linear layer W gets A (r, in) and B (out, r), which train
    merged: W + (alpha / r) B A, under W's own name;  switch_off: the model computes with W alone
    save_adapter -> A and B in a folder of their own, as peft and vLLM read it

So a saved model is a plain one: engines, scorer and the next iteration need to know nothing of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stargate.config.run import LoraConfig
from stargate.errors import ConfigError

# How peft names what it puts around a layer: the only adapter, and the layer itself inside.
_ADAPTER = "default"
_INNER = ".base_layer"
# Where a model's adapter is saved, within the model's folder.
FOLDER = "adapter"


def add_adapters(model: Any, config: LoraConfig) -> None:
    """Puts adapters into the model and freezes all else. They begin without any effect (B = 0).

    Raises ConfigError if a name in `target_modules` fits no linear layer.
    """
    import peft

    targets: str | list[str] = list(config.target_modules) or "all-linear"
    if isinstance(targets, list):
        _check_targets(model, targets)
    # task_type would only choose peft's own wrapper, which we don't use.
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0
    )
    try:
        peft.inject_adapter_in_model(settings, model)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"trainer.lora: {' '.join(str(error).split())}") from error


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """A parameter's name in the model without adapters."""
    return name.replace(_INNER, "")


def adapted_layers(model: Any) -> dict[str, Any]:
    """The layers that have an adapter, by the name of their weight within the adapted model."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{name}{_INNER}.weight": layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def factors(layer: Any | None) -> tuple[Any, ...]:
    """The parameters A (r, in) and B (out, r) of an adapted layer; none of another one."""
    if layer is None:
        return ()
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight


def merge(layer: Any, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W + (alpha / r) B A in float32, in the shape of `weight` (some layers keep it transposed)."""
    change: Tensor = (b @ a) * layer.scaling[_ADAPTER]
    return weight + (change.T if layer.fan_in_fan_out else change)


def save_adapter(
    folder: Path, config: LoraConfig, tensors: Mapping[str, tuple[Tensor, Tensor]], base: str
) -> None:
    """Writes A and B by the name of the weight that they change, and the config for peft and vLLM.

    `base` is the folder of the model that they change. Raises OSError or SafetensorError.
    """
    import peft
    from safetensors.torch import save_file

    folder.mkdir()
    named: dict[str, Tensor] = {}
    for weight, pair in tensors.items():
        layer = plain_name(weight).removesuffix(".weight")
        for kind, tensor in zip("AB", pair, strict=True):
            named[f"base_model.model.{layer}.lora_{kind}.weight"] = tensor.contiguous()
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    layers = {plain_name(name).removesuffix(".weight").rsplit(".", 1)[-1] for name in tensors}
    peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=sorted(layers),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(str(folder))


def switch_off(model: Any) -> None:
    """From now on the adapters do nothing: their effect is in the merged weights."""
    for layer in adapted_layers(model).values():
        layer.enable_adapters(False)


def _check_targets(model: Any, targets: list[str]) -> None:
    from torch import nn

    head = model.get_output_embeddings()
    linear = [
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not head
    ]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ConfigError(
                f"trainer.lora.target_modules: the model has no linear layer {target!r} "
                f"that can take an adapter; it has {known}"
            )
