"""(torch, DeepSpeed) The backend on DeepSpeed: its ZeRO stages, the saved folder, checkpoints.

A micro-batch is one row without padding (packing.py), or padded where the model can't be packed.
With `lora` only adapters learn (lora.py); settling merges them into the weights.

Precision. With bfloat16, DeepSpeed keeps float32 master weights and Adam moments beside the model,
so updates far below a bfloat16 weight's resolution add up over the steps. What is saved is rounded
from the masters without bias (modeling.round_unbiased); the bfloat16 model that computes the losses
is rounded to nearest and lags behind, so losses reported during a bfloat16 training are somewhat
higher than those of the masters. ZeRO-0 has no masters under DeepSpeed's bfloat16: there the model
itself is float32 and computes under autocast.

Checkpoints. DeepSpeed's own are pickled, and none is read here. Masters and moments are read and
set one parameter at a time by its public calls (safe_get_full_..., safe_set_...), whole.
"""

import gc
import logging
from collections.abc import Callable, Mapping
from importlib import metadata
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
from torch import Tensor, distributed, nn
from torch.nn import functional

from stargate.actors.modeling.model import (
    SelectedLogits,
    load_model,
    max_positions,
    round_unbiased,
    save_model,
    token_losses,
)
from stargate.actors.training import lora as adapters
from stargate.actors.training.batches import Batch, make_batch
from stargate.actors.training.packing import make_packable
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import TrainerConfig
from stargate.errors import ConfigError, MachineError

_LOG = logging.getLogger(__name__)

# Elements of DeepSpeed's communication buffers. Its own 500 million take 1 to 2 GB per buffer,
# whatever the model's size.
_BUCKET_ELEMENTS = 50_000_000


def _engine_config(config: TrainerConfig) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        # Steps have as many micro-batches as they need: backward() sets the boundaries.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
        },
        "steps_per_print": 10**9,
    }
    if config.dtype == "bfloat16" and config.zero_stage > 0:
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _prepare(spec: TrainerSpec, start_model_dir: str) -> tuple[Any, bool]:
    """The model as it will learn, and whether it takes packed rows. Raises ConfigError."""
    config = spec.config
    model = load_model(start_model_dir, None, "cpu", spec.trust_remote_code)
    kind = model.config.model_type
    problem = make_packable(model) if config.packing else None
    if problem is not None and spec.rank == 0:
        _LOG.warning("%s: examples are padded, not packed: %s", kind, problem)
    if config.lora is not None:
        adapters.add_adapters(model, config.lora)
    if config.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"trainer.activation_checkpointing: model {kind} does not support it; turn it off"
            )
        # Layers keep only their input, and compute the rest again in the backward pass.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, config.packing and problem is None


class _Policy(nn.Module):
    """log p of each target, predicted at (rows[p], columns[p]); (P,), in nats."""

    def __init__(self, model: Any, autocast: bool) -> None:
        super().__init__()
        self.model = model
        self._logits = SelectedLogits(model)
        self._autocast = autocast

    def forward(self, rows: Tensor, columns: Tensor, targets: Tensor, **inputs: Any) -> Tensor:
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=self._autocast):
            logits, _ = self._logits(rows, columns, use_cache=False, **inputs)
        return -token_losses(logits, targets)


class DeepSpeedBackend:
    """What each method is for stands in backend.py: Backend."""

    name = f"deepspeed {metadata.version('deepspeed')}"

    @staticmethod
    def join(device: str) -> None:
        # A C++ operator that only DeepSpeed's inference collectives use. Building it needs a
        # compiler and takes half a minute at first use, and a killed build leaves a lock that
        # blocks the next.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo")

    @staticmethod
    def leave() -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def __init__(self, spec: TrainerSpec, start_model_dir: str) -> None:
        # OpenMP's thread count belongs to the calling thread, which is not the one that started us.
        torch.set_num_threads(spec.num_threads)
        torch.manual_seed(spec.seed)
        self._spec = spec
        self._stage = spec.config.zero_stage
        self._device = torch.device(spec.device)
        self._model, self.packed = _prepare(spec, start_model_dir)
        self.max_positions = max_positions(self._model)
        self._weights: dict[str, Tensor] = {}
        # What the saved weights are rounded to: the start folder has its dtypes from the base.
        self._dtypes = {
            adapters.plain_name(name): p.dtype for name, p in self._model.named_parameters()
        }
        # DeepSpeed casts a bfloat16 model itself: parameters only, rotary frequencies must not be.
        settings = _engine_config(spec.config)
        if "bf16" not in settings:
            self._model.float()
        # Frozen weights have no masters: those that bfloat16 can't hold are kept for the merge.
        self._precise: dict[str, Tensor] = {
            name: p.detach().clone()
            for name, p in self._model.named_parameters()
            if not p.requires_grad and p.dtype == torch.float32 and "bf16" in settings
        }
        autocast = spec.config.dtype == "bfloat16" and "bf16" not in settings
        policy = _Policy(self._model, autocast)
        self._learning = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        shapes = {name: p.shape for name, p in self._learning.items()}
        devices = ("cpu", "cuda") if spec.device == "cuda" else ("cpu",)
        self.shapes = {
            "master": shapes,
            "exp_avg": shapes,
            "exp_avg_sq": shapes,
            "step": dict.fromkeys(shapes, torch.Size()),
            "random": {name: self.get("random", name).shape for name in devices},
        }
        # torch's fused AdamW. DeepSpeed's own compiles for minutes, its "torch_adam" is not fused
        # (1.3 s a step instead of 0.3 s for SmolLM2-135M on two cores). The rate is set before each
        # step; it is 0 here because some of DeepSpeed's wrappers make a first step on empty
        # gradients, which would already decay the weights.
        self._optimizer = torch.optim.AdamW(
            self._learning.values(), lr=0.0, weight_decay=spec.config.weight_decay, fused=True
        )
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=self._optimizer, config=settings
        )
        where = next(self._model.parameters()).device
        print(f"trainer: rank {spec.rank} of {spec.world_size} computes on {where}", flush=True)
        # Forget that first step on empty gradients: Adam's bias correction counts steps.
        self._optimizer.state.clear()
        self._check: Callable[[float], None] | None = None
        self._optimizer.register_step_pre_hook(self._before_step)

    def forward(self, batch: Batch, learning: bool) -> Tensor:
        self._engine.train(learning)
        with torch.set_grad_enabled(learning):
            logprobs: Tensor = self._engine(
                batch.rows, batch.columns, batch.targets, **batch.inputs
            )
        return logprobs

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # Micro-batches add up, without a mean.
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self, rate: float, check: Callable[[float], None]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._stage == 0:
            # The one case in which DeepSpeed clips without telling the norm.
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            check(norm)
            self._engine.step()
            return norm
        self._check = check
        self._engine.step()
        self._check = None
        norm = float(self._engine.get_global_grad_norm())
        # DeepSpeed itself leaves out a step whose norm is not finite, without calling the hook.
        check(norm)
        return norm

    def _before_step(self, *_: Any) -> None:
        """The optimizer calls it. DeepSpeed knows the norm by now, but tells it after the step."""
        if self._check is not None:
            self._check(float(self._engine.optimizer._global_grad_norm))

    def settle(self) -> None:
        """Rank 0 also collects the weights in main memory.

        One parameter at a time is put together from what the ranks hold, so under ZeRO-3 the whole
        model never is on one device. All ranks draw the same random numbers, so they settle on the
        same weights.
        """
        generator = torch.Generator().manual_seed(self._spec.seed)
        adapted = adapters.adapted_layers(self._model) if self._spec.config.lora else {}
        for name, parameter in self._model.named_parameters():
            if adapted and adapters.is_adapter(name):
                continue
            exact = self._exact(name, parameter)
            if name in adapted:
                a, b = (self._exact("", p) for p in adapters.factors(adapted[name]))
                exact = adapters.merge(adapted[name], exact, a, b)
            plain = adapters.plain_name(name)
            value = round_unbiased(exact, self._dtypes[plain], generator)
            with deepspeed.zero.GatheredParameters(
                [parameter], modifier_rank=0, enabled=self._stage == 3
            ):
                parameter.data.copy_(value)
            if self._spec.rank == 0:
                self._weights[plain] = value
        if adapted:
            adapters.switch_off(self._model)
        saved = self._model.state_dict().keys()
        for name, buffer in self._model.named_buffers():
            if self._spec.rank == 0 and name in saved:
                self._weights[adapters.plain_name(name)] = buffer.detach().cpu()

    def _exact(self, name: str, parameter: Any) -> Tensor:
        """A parameter at the precision in which it learned, or in which it was loaded; on the CPU.

        Under ZeRO-3 all ranks must ask at once.
        """
        if name in self._precise:
            return self._precise[name]
        exact: Tensor
        if parameter.requires_grad and self._stage > 0:
            exact = safe_get_full_fp32_param(parameter).detach().float().cpu()
            return exact
        partitioned = self._stage == 3
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            exact = parameter.detach().float().cpu()
            # Partitioned again, the parameter's memory is gone.
            return exact.clone() if partitioned else exact

    def save(self, output_dir: str) -> None:
        problem: str | None = None
        if self._spec.rank == 0:
            try:
                save_model(self._model, self._weights, self._spec.base_model_dir, output_dir)
            except MachineError as error:
                problem = str(error)
        problem = self.exchange({"problem": problem})[0]["problem"]
        if problem is not None:
            raise MachineError(problem)

    def get(self, kind: str, name: str) -> Tensor:
        tensor: Tensor
        if kind == "random":
            return torch.get_rng_state() if name == "cpu" else torch.cuda.get_rng_state()
        parameter = self._learning[name]
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
        if kind == "random":
            (torch if name == "cpu" else torch.cuda).set_rng_state(value)
            return
        if self._stage > 0 and not self._optimizer.state:
            self._step_on_nothing()
        parameter, value = self._learning[name], value.to(self._device, copy=True)
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

    @torch.enable_grad()
    def _step_on_nothing(self) -> None:
        """A step that changes no weight: before the first one there are no moments to set."""
        logprobs = self.forward(make_batch([], self.packed, self._device), learning=True)
        self.backward(logprobs.sum() * 0.0, last=True)
        self.update(0.0, lambda norm: None)

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        told: list[Any] = [None] * self._spec.world_size
        distributed.all_gather_object(told, dict(message))
        return told

    def close(self) -> None:
        self._engine.destroy()
        del self._engine, self._model, self._optimizer, self._learning, self._weights
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
