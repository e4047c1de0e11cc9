"""Our weight-transfer backend inside vLLM's worker processes (torch, vllm).

    start_weight_update   -> the model's layers wait for new weights (vLLM's layerwise reload)
    update_weights        -> tensors come from safetensors files; a layer is filled when complete
    finish_weight_update  -> what layers need after loading; do they hold what was sent?
                             (weight_check.py); from here on the weights are served

vLLM's layerwise reload serves every model; per tensor it counts, buffers and allocates, which takes
longer on a CPU than moving the bytes. A first push goes through it. When weight_check.py then finds
that every parameter holds just the file's tensor of its name (or, of a fused layer, its parts'
tensors one below the other), later pushes do only that, and are checked in the same way:

    a parameter that is there      -> values are copied into it
    a weight that was packed away  -> the file's mapped bytes are packed as they are

vLLM's own backends need a GPU. Files reach a worker on any device; on CPU they are mapped, not
read. Imported by vLLM, as weight_files.register tells it; by nothing else.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from stargate.actors.engines.weight_check import Watch, file_names
from stargate.actors.modeling.weight_sums import read_columns, read_sums

_LOG = logging.getLogger(__name__)

# The ignores below: vLLM ships no types, so its classes are Any to mypy.


@dataclass
class FileInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Files need no rendezvous."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Safetensors files that together hold all tensors of the model, under checkpoint names."""

    files: list[str]


class FileWeightTransfer(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):  # type: ignore[misc]
    """Loads a whole checkpoint from files that the worker can open."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    _num_pushes = 0
    _watch: Watch | None = None
    # Whether a checked push has shown that load_directly does what vLLM's reload does.
    _is_plain = False

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to prepare."""

    def start_weight_update(self) -> None:
        """Remembers which parameters must get a value, then makes the layers wait for them."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._expected = {name for name, _ in self.model.named_parameters()}
        if not self._is_plain:
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, which synchronises an accelerator even where there is none."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Raises ValueError when the files leave a parameter without a value.

        WeightMismatch, which is one, when a file does not hold what was saved.
        """
        folder = Path(update_info.files[0]).parent
        watch = Watch(
            self._num_pushes,
            read_sums(folder),
            read_columns(folder),
            rank=get_tensor_model_parallel_rank(),
            world_size=get_tensor_model_parallel_world_size(),
        )
        tensors = watch.over(_tensors(update_info.files))
        self._watch = watch
        self._num_pushes += 1
        if self._is_plain:
            load_directly(self.model, dict(tensors))
            return
        loaded = self.model.load_weights(tensors)
        # A quantised model makes some parameters (scales) itself; there a missing one says nothing.
        if loaded is not None and self.model_config.quantization is None:
            missing = sorted(self._expected - loaded)
            if missing:
                raise ValueError(f"no value for {missing[0]} ({len(missing)} such parameters)")

    def finish_weight_update(self) -> None:
        """Lets every layer prepare its new weights for use. Raises WeightMismatch."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        if not self._is_plain:
            finalize_layerwise_reload(self.model, self.model_config)
            _prepare_tied_layers(self.model)
        watch, self._watch = self._watch, None
        # What a quantised layer holds is not what was sent, and must not be.
        if watch is None or self.model_config.quantization is not None:
            return
        unchecked = watch.check(self.model)
        if unchecked:
            _LOG.warning("%d parameters can't be compared: %s", len(unchecked), unchecked[:3])
        # A rank's share of a tensor is cut out by vLLM's own loaders.
        whole = get_tensor_model_parallel_world_size() == 1
        self._is_plain = not unchecked and whole and self.device.type == "cpu"

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def _prepare_tied_layers(model: nn.Module) -> None:
    """Prepares layers again that share their weight with an earlier one, as an output head may.

    No tensor of the files is theirs, so the layerwise reload leaves them out. On CPU they hold a
    packed copy of the weight, and an engine would go on computing logits with the old one.
    """
    owners: dict[int, nn.Module] = {}
    for module in model.modules():
        weight, method = module._parameters.get("weight"), getattr(module, "quant_method", None)
        if weight is None or method is None:
            continue
        if owners.setdefault(id(weight), module) is not module:
            method.process_weights_after_loading(module)


def _tensors(files: list[str]) -> Iterator[tuple[str, Tensor]]:
    """All tensors, on the CPU: the layerwise reload moves each layer to the model's device."""
    for file in files:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                yield name, opened.get_tensor(name)


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
