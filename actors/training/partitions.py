"""(torch, DeepSpeed) What the optimizer steps of a stage change, tensor by tensor, on one rank.

    state -> what a checkpoint must hold;  restore: the stage goes on from there, to the bit

DeepSpeed's own checkpoints are pickled, and none is read here. Its ZeRO optimizers keep one flat
float32 master per group of parameters and rank (stage 3: several), and the plain optimizer inside
keeps its moments under the master; without ZeRO the parameters themselves are the masters. The
attributes are those of DeepSpeed 0.19.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

# Bytes of a message between ranks, as JSON.
_MESSAGE_BYTES = 4096


class Partitions:
    """One rank's share of weights and moments, and its talk with the other ranks."""

    def __init__(self, engine: Any, zero_stage: int, device: torch.device) -> None:
        self._engine = engine
        self._zero_stage = zero_stage
        self._device = device
        self._rank, self._world_size = distributed.get_rank(), distributed.get_world_size()

    def state(self) -> dict[str, Tensor]:
        """What the steps so far have changed, of what this rank holds; not copied.

        master.I, exp_avg.I, ...: the I-th of the float32 tensors that the optimizer updates (flat
        partitions, without ZeRO the parameters) and its moments. random.*: torch's generators. The
        model's weights are made from the masters.
        """
        tensors = {"random.cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["random.device"] = torch.cuda.get_rng_state(self._device)
        for number, master in enumerate(self._masters()):
            tensors[f"master.{number}"] = master.detach()
            for kind, value in self._engine.basic_optimizer.state.get(master, {}).items():
                tensors[f"{kind}.{number}"] = value
        return tensors

    def is_own(self, name: str) -> bool:
        """Whether no rank before this one has a tensor of `state` too."""
        sharded = self._zero_stage > 0
        return sharded or self._rank == 0 or name.startswith("random.")

    def misfit(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What keeps `restore` from taking these; None if they fit."""
        now = self.state()
        for name in now.keys() - tensors.keys():
            if name.startswith(("master.", "random.")):
                return f"it has no {name}"
        for name, tensor in tensors.items():
            kind, _, number = name.partition(".")
            like = now.get(name if kind == "random" else f"master.{number}")
            if like is None:
                return f"{name} has no place in this training"
            scalar = kind not in ("random", "master") and tensor.dim() == 0
            if tensor.dtype != like.dtype or (tensor.shape != like.shape and not scalar):
                return f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not like {like.dtype} " + (
                    f"{tuple(like.shape)}"
                )
        return None

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts this stage where another one was when `state` was called there. They must fit."""
        masters = self._masters()
        moments: list[dict[str, Tensor]] = [{} for _ in masters]
        for name, tensor in tensors.items():
            kind, _, number = name.partition(".")
            if kind == "master":
                masters[int(number)].data.copy_(tensor)
            elif kind != "random":
                place = masters[int(number)].device
                moments[int(number)][kind] = tensor.to(place, copy=True)
        optimizer = self._engine.basic_optimizer
        optimizer.state.clear()
        optimizer.state.update(
            {master: state for master, state in zip(masters, moments, strict=True) if state}
        )
        self._publish()
        torch.set_rng_state(tensors["random.cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.device"], self._device)

    def _masters(self) -> list[Any]:
        """The tensors that the optimizer updates."""
        if self._zero_stage == 3:  # it shows them to the optimizer one at a time
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._engine.basic_optimizer.param_groups for p in group["params"]]

    def _publish(self) -> None:
        """Gives the model the masters' weights, as DeepSpeed does at the end of a step."""
        zero = self._engine.optimizer
        if self._zero_stage == 3:
            zero._partition_all_parameters()
            for number in range(len(zero.fp32_partitioned_groups_flat)):
                zero._reassign_or_swap_out_partitioned_parameters(number)
            zero._post_step(set())
        elif self._zero_stage > 0:
            zero.update_lp_params()

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every rank's message on every rank, in their order. Plain values, up to 4 KiB as JSON."""
        data = json.dumps(message).encode()
        if len(data) > _MESSAGE_BYTES:
            raise ValueError(f"a message of {len(data)} bytes to the other ranks")
        own = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        own = own.to(self._device)
        told = [torch.empty_like(own) for _ in range(self._world_size)]
        distributed.all_gather(told, own)
        return [json.loads(bytes(t.cpu().tolist()).rstrip(b"\0")) for t in told]
