"""(torch, DeepSpeed) What an optimizer keeps of each weight that learns, whole, one at a time.

DeepSpeed's own checkpoints are pickled, and none is read here: masters and moments are read and set
by its public calls (safe_get_full_..., safe_set_...).
"""

from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor
from torch.nn import functional

from stargate.actors.training.spec import TrainerSpec


class OptimizerState:
    """Kinds are "master" (float32), "exp_avg", "exp_avg_sq" and "step"; and this process's "random"
    generators. All ranks ask at once. `shapes` are those of all, by kind and name.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        learning: Mapping[str, Any],
        shapes: Mapping[str, torch.Size],
        spec: TrainerSpec,
    ) -> None:
        """`learning` are the weights as the model has them, `shapes` theirs when they are whole."""
        self._optimizer = optimizer
        self._learning = learning
        self._spec = spec
        self._stage = spec.config.zero_stage
        devices = ("cpu", "cuda") if spec.device == "cuda" else ("cpu",)
        self.shapes = {
            "master": shapes,
            "exp_avg": shapes,
            "exp_avg_sq": shapes,
            "step": dict.fromkeys(shapes, torch.Size()),
            "random": {name: self.get("random", name).shape for name in devices},
        }

    def get(self, kind: str, name: str) -> Tensor:
        """One of them; maybe the optimizer's own memory."""
        if kind == "random":
            return torch.get_rng_state() if name == "cpu" else torch.cuda.get_rng_state()
        parameter = self._learning[name]
        tensor: Tensor
        if self._stage == 0:
            # There are no moments where there was no gradient so far.
            moments = self._optimizer.state.get(parameter) or {}
            like = torch.zeros(self.shapes[kind][name])
            tensor = parameter.detach() if kind == "master" else moments.get(kind, like)
        elif kind == "master":
            tensor = safe_get_full_fp32_param(parameter)
        elif kind == "step":
            tensor = next(iter(self._optimizer.state.values()))["step"].clone()  # one for all
        else:
            tensor = safe_get_full_optimizer_state(parameter, kind)
        return tensor

    @torch.no_grad()
    def set(self, kind: str, name: str, value: Tensor) -> None:
        """Takes one that `get` gave. There must have been a step."""
        if kind == "random":
            (torch if name == "cpu" else torch.cuda).set_rng_state(value)
            return
        parameter = self._learning[name]
        value = value.to(parameter.device, copy=True)
        if kind == "master":  # also in what computes, rounded where that is bfloat16
            with deepspeed.zero.GatheredParameters(
                [parameter], modifier_rank=0, enabled=self._stage == 3
            ):
                parameter.data.copy_(value)
        if self._stage == 0:
            if kind != "master":
                self._optimizer.state[parameter][kind] = value
        elif kind == "step":
            for state in self._optimizer.state.values():
                state["step"].copy_(value)
        elif self._stage == 3:
            # This rank's part. DeepSpeed's call for whole values takes none that needs padding.
            size, world_size = safe_get_local_fp32_param(parameter).numel(), self._spec.world_size
            padded = functional.pad(value.flatten(), (0, size * world_size - value.numel()))
            part = padded.view(world_size, size)[self._spec.rank]
            if kind == "master":
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
        elif kind == "master":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
