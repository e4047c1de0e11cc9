"""(torch, DeepSpeed) The backend on DeepSpeed: its ZeRO stages, the saved folder, checkpoints.

A micro-batch is one row without padding (packing.py), or padded where the model can't be packed.
With `lora` only adapters learn (lora.py); settling merges them into the weights.

Precision. With bfloat16, DeepSpeed keeps float32 master weights and Adam moments beside the model,
so updates far below a bfloat16 weight's resolution add up over the steps. What is saved is rounded
from the masters without bias (modeling.round_unbiased); the bfloat16 model that computes the losses
is rounded to nearest and lags behind, so losses reported during a bfloat16 training are somewhat
higher than those of the masters. ZeRO-0 has no masters under DeepSpeed's bfloat16: there the model
itself is float32 and computes under autocast.
"""

import gc
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, distributed, nn

from stargate.actors.modeling.attention import restore
from stargate.actors.modeling.model import (
    SelectedLogits,
    max_positions,
    round_unbiased,
    save_model,
    token_losses,
)
from stargate.actors.modeling.weight_sums import ChangedColumns
from stargate.actors.training import lora as adapters
from stargate.actors.training.batches import Batch, make_batch
from stargate.actors.training.freed_memory import empty_tensors
from stargate.actors.training.loading import load, share_out
from stargate.actors.training.optimizer_state import OptimizerState
from stargate.actors.training.packing import make_packable
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import TrainerConfig
from stargate.errors import MachineError
from stargate.resources import memory

_LOG = logging.getLogger(__name__)

# How long a rank waits for another one's message. That one has died is noticed at once.
_PATIENCE = timedelta(days=2)


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
            "reduce_bucket_size": memory.BUCKET_ELEMENTS,
            "allgather_bucket_size": memory.BUCKET_ELEMENTS,
        },
        "steps_per_print": 10**9,
    }
    if config.dtype == "bfloat16" and config.zero_stage > 0:
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


class _Policy(nn.Module):
    """log p of each target, predicted at (rows[p], columns[p]); (P,), in nats.

    Without targets the logits there, (P, V).
    """

    def __init__(self, model: Any, autocast: bool) -> None:
        super().__init__()
        self.model = model
        self._logits = SelectedLogits(model)
        self._autocast = autocast

    def forward(
        self, rows: Tensor, columns: Tensor, targets: Tensor | None, **inputs: Any
    ) -> Tensor:
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self._autocast):
            logits, _ = self._logits(rows, columns, use_cache=False, **inputs)
        return logits if targets is None else -token_losses(logits, targets)


class DeepSpeedBackend:
    """What each method is for stands in backend.py: Backend."""

    name = f"deepspeed {metadata.version('deepspeed')}"
    _messages: Any = None  # the group of ranks that `exchange` goes through

    @staticmethod
    def join(device: str) -> None:
        # A C++ operator that only DeepSpeed's inference collectives use. Building it needs a
        # compiler and takes half a minute at first use, and a killed build leaves a lock that
        # blocks the next.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo")
        # What ranks tell each other goes through gloo, whatever the gradients go through: one may
        # read or write a model meanwhile, and NCCL gives the others up after 10 minutes.
        DeepSpeedBackend._messages = distributed.new_group(backend="gloo", timeout=_PATIENCE)

    @staticmethod
    def leave() -> None:
        DeepSpeedBackend._messages = None
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def __init__(self, spec: TrainerSpec, start_model_dir: str) -> None:
        # OpenMP's thread count belongs to the calling thread, which is not the one that started us.
        torch.set_num_threads(spec.num_threads)
        torch.manual_seed(spec.seed)
        self._spec = spec
        self._stage = spec.config.zero_stage
        self._device = torch.device(spec.device)
        self._model = load(spec, start_model_dir, self.exchange)
        self.max_positions = max_positions(self._model)
        self._start_model_dir = start_model_dir
        self._weights: dict[str, Tensor] = {}
        self._adapters: dict[str, tuple[Tensor, Tensor]] = {}  # A and B, by what they change
        self._changed = ChangedColumns()
        named = dict(self._model.named_parameters())
        # What the saved weights are rounded to: the start folder has its dtypes from the base.
        self._dtypes = {adapters.plain_name(name): p.dtype for name, p in named.items()}
        settings = _engine_config(spec.config)
        masters = "bf16" in settings
        self._precise = self._keep_precise(named) if masters else {}
        shapes = {name: p.shape for name, p in named.items() if p.requires_grad}
        del named
        # DeepSpeed casts a bfloat16 model itself: parameters only, rotary frequencies must not be.
        if not masters:
            self._model.float()
        if self._stage == 3:
            computing = torch.bfloat16 if masters else torch.float32
            share_out(self._model, settings, computing, self._device)
        policy = _Policy(self._model, spec.config.dtype == "bfloat16" and not masters)
        learning = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        # torch's fused AdamW. DeepSpeed's own compiles for minutes, its "torch_adam" is not fused
        # (1.3 s a step instead of 0.3 s for SmolLM2-135M on two cores). The rate is set before each
        # step; it is 0 here because some of DeepSpeed's wrappers make a first step on empty
        # gradients, which would already decay the weights.
        self._optimizer = torch.optim.AdamW(
            learning.values(), lr=0.0, weight_decay=spec.config.weight_decay, fused=True
        )
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=self._optimizer, config=settings
        )
        where = next(self._model.parameters()).device
        print(f"trainer: rank {spec.rank} of {spec.world_size} computes on {where}", flush=True)
        # Forget that first step on empty gradients: Adam's bias correction counts steps.
        self._optimizer.state.clear()
        self._state = OptimizerState(self._optimizer, learning, shapes, spec)
        self.shapes = self._state.shapes
        self._check: Callable[[float], None] | None = None
        self._optimizer.register_step_pre_hook(self._before_step)
        self.packed = spec.config.packing and self._try_packing()

    def _keep_precise(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies for the merge, on the rank that merges: frozen weights have no masters, and some
        are not what bfloat16 can hold. The other ranks only know which.
        """
        own = [n for n, p in named.items() if not p.requires_grad and p.dtype == torch.float32]
        names = self.exchange({"names": own})[0]["names"]
        first = self._spec.rank == 0
        return {n: named[n].detach().clone() if first else torch.empty(0) for n in names}

    def _try_packing(self) -> bool:
        """Whether the model takes packed rows, here, in the precision in which it computes."""

        def logits(input_ids: Tensor, **inputs: Any) -> Tensor:
            columns = torch.arange(input_ids.shape[1], device=self._device)
            found: Tensor = self._engine.module(
                torch.zeros_like(columns), columns, None, input_ids=input_ids, **inputs
            )
            return found

        self._engine.eval()
        own = make_packable(self._model, logits)
        # Steps are laid out alike on all ranks.
        problem = next((t["own"] for t in self.exchange({"own": own}) if t["own"]), None)
        if problem is None:
            return True
        if own is None:
            restore(self._model)
        if self._stage == 3:
            self._engine.optimizer.empty_partition_cache()  # what the trial left gathered
        if self._spec.rank == 0:
            kind = self._model.config.model_type
            _LOG.warning("%s: examples are padded, not packed: %s", kind, problem)
        return False

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
        """Rank 0 merges and rounds, on its device, and also collects the weights in main memory.

        One parameter at a time is put together from what the ranks hold, so under ZeRO-3 the whole
        model never is on one device.
        """
        first = self._spec.rank == 0
        generator = torch.Generator(self._device).manual_seed(self._spec.seed)
        adapted = adapters.adapted_layers(self._model) if self._spec.config.lora else {}
        for name, parameter in self._model.named_parameters():
            if adapted and adapters.is_adapter(name):
                continue
            exact = self._exact(name, parameter)
            factors = [self._exact("", p) for p in adapters.factors(adapted.get(name))]
            plain = adapters.plain_name(name)
            with deepspeed.zero.GatheredParameters(
                [parameter], modifier_rank=0, enabled=self._stage == 3
            ):
                if first:
                    learned = adapters.merge(adapted[name], exact, *factors) if factors else exact
                    value = round_unbiased(learned, self._dtypes[plain], generator)
                    if factors:
                        self._adapters[name] = (factors[0].cpu(), factors[1].cpu())
                        self._changed.note(exact.to(value.dtype), value)
                    parameter.data.copy_(value)
                    self._weights[plain] = value.cpu()
            if self._stage < 3:
                distributed.broadcast(parameter.data, 0)
        if adapted:
            adapters.switch_off(self._model)
        saved = self._model.state_dict().keys()
        for name, buffer in self._model.named_buffers():
            if first and name in saved:
                self._weights[adapters.plain_name(name)] = buffer.detach().cpu()

    def _exact(self, name: str, parameter: Any) -> Tensor:
        """A parameter at the precision in which it learned, or in which it was loaded.

        Under ZeRO-3 all ranks must ask at once.
        """
        if name in self._precise:
            return self._precise[name].to(self._device)
        exact: Tensor
        if parameter.requires_grad and self._stage > 0:
            exact = safe_get_full_fp32_param(parameter).detach().float()
            return exact
        partitioned = self._stage == 3
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            exact = parameter.detach().float()
            # Partitioned again, the parameter's memory is gone.
            return exact.clone() if partitioned else exact

    def save(self, output_dir: str) -> None:
        problem: str | None = None
        if self._spec.rank == 0:
            try:
                base_dir = self._spec.base_model_dir
                save_model(self._model, self._weights, base_dir, output_dir, self._add)
            except MachineError as error:
                problem = str(error)
        problem = self.exchange({"problem": problem})[0]["problem"]
        if problem is not None:
            raise MachineError(problem)

    def _add(self, folder: Path) -> None:
        """Writes what else belongs to the saved model."""
        self._changed.write(folder)
        lora = self._spec.config.lora
        if lora is not None and lora.save == "adapter":
            place = folder / adapters.FOLDER
            adapters.save_adapter(place, lora, self._adapters, self._start_model_dir)

    def get(self, kind: str, name: str) -> Tensor:
        return self._state.get(kind, name)

    def set(self, kind: str, name: str, value: Tensor) -> None:
        if self._stage > 0 and not self._optimizer.state:
            self._step_on_nothing()
        self._state.set(kind, name, value)

    @torch.enable_grad()
    def _step_on_nothing(self) -> None:
        """A step that changes no weight: before the first one there are no moments to set."""
        logprobs = self.forward(make_batch([], self.packed, self._device), learning=True)
        self.backward(logprobs.sum() * 0.0, last=True)
        self.update(0.0, lambda norm: None)

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        told: list[Any] = [None] * self._spec.world_size
        distributed.all_gather_object(told, dict(message), group=self._messages)
        return told

    def close(self) -> None:
        self._engine.destroy()
        empty_tensors(self._engine.optimizer, self._optimizer, self._model, self)
        is_cuda = self._device.type == "cuda"
        vars(self).clear()
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()  # last: it frees what nobody holds any more
