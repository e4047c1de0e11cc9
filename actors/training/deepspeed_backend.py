"""(torch, DeepSpeed) One training stage on one rank: model, engine, steps, and the saved folder.

    accumulate(step): each micro-batch forward and backward -> loss of every example, on every rank
    update(rate, check): one optimizer step, unless `check` refuses its gradient norm
    partitions: what the steps have changed so far, for checkpoints (checkpoints.py)
    settle(): the weights become what will be saved;  evaluate(step): the loss under them
    save(folder): rank 0 writes them

A micro-batch is one row without padding (packing.py), or padded where the model can't be packed.
With `lora` only adapters learn (lora.py); settling merges them into the weights.

The denominator of the loss. An optimizer step learns from n loss tokens: those of all examples of
the batch, on all ranks and in all micro-batches. Its loss is (sum of -log p over these n) / n, so
every token weighs the same wherever it happens to be computed. DeepSpeed averages gradients over
ranks, therefore each rank's sum is multiplied by (number of ranks / n); gradient accumulation adds
micro-batches up, without a mean (scale_wrt_gas=False).

Precision. With bfloat16, DeepSpeed keeps float32 master weights and Adam moments beside the model,
so updates far below a bfloat16 weight's resolution add up over the steps. What is saved is rounded
from the masters without bias (modeling.round_unbiased); the bfloat16 model that computes the losses
is rounded to nearest and lags behind, so losses reported during a bfloat16 training are somewhat
higher than those of the masters. ZeRO-0 has no masters under DeepSpeed's bfloat16: there the model
itself is float32 and computes under autocast.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, distributed, nn

from stargate.actors.training import lora as adapters
from stargate.actors.training.batches import make_batch
from stargate.actors.training.modeling import (
    SelectedLogits,
    load_model,
    max_positions,
    round_unbiased,
    save_model,
    token_losses,
)
from stargate.actors.training.packing import make_packable
from stargate.actors.training.partitions import Partitions
from stargate.algorithm.step_plan import MicroBatch, Step
from stargate.config.run import TrainerConfig
from stargate.errors import ConfigError, DataError, MachineError
from stargate.types import TrainingExample

if TYPE_CHECKING:
    from stargate.actors.training.rank import TrainerSpec

_LOG = logging.getLogger(__name__)

# Elements of DeepSpeed's communication buffers. Its own 500 million take 1 to 2 GB per buffer,
# whatever the model's size.
_BUCKET_ELEMENTS = 50_000_000


def join_ranks(device: str) -> None:
    """Meets the other ranks, as the environment says. Blocks until all are there."""
    # A C++ operator that only DeepSpeed's inference collectives use. Building it needs a compiler
    # and takes half a minute at first use, and a killed build leaves a lock that blocks the next.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo")


def leave_ranks() -> None:
    """Ends this process's membership."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def engine_config(config: TrainerConfig) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        # Steps have as many micro-batches as they need: accumulate() sets the boundaries itself.
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


class _LossModel(nn.Module):
    """-log p of each target, predicted at (rows[p], columns[p]); (P,), in nats."""

    def __init__(self, model: Any, autocast: bool) -> None:
        super().__init__()
        self.model = model
        self._logits = SelectedLogits(model)
        self._autocast = autocast

    def forward(self, rows: Tensor, columns: Tensor, targets: Tensor, **inputs: Any) -> Tensor:
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=self._autocast):
            logits, _ = self._logits(rows, columns, use_cache=False, **inputs)
        return token_losses(logits, targets)


class Finetuning:
    """Trains a model folder on some examples; `close` it whatever happens."""

    def __init__(
        self, spec: "TrainerSpec", start_model_dir: str, examples: Sequence[TrainingExample]
    ) -> None:
        # OpenMP's thread count belongs to the calling thread, which is not the one that started us.
        torch.set_num_threads(spec.num_threads)
        torch.manual_seed(spec.seed)
        self._spec = spec
        self._examples = examples
        self._device = torch.device(spec.device)
        self._model = load_model(start_model_dir, None, "cpu", spec.trust_remote_code)
        self._check_lengths()
        self._weights: dict[str, Tensor] = {}
        # What the saved weights are rounded to: the start folder has its dtypes from the base.
        self._dtypes = {name: p.dtype for name, p in self._model.named_parameters()}
        self.packed = self._make_packable()
        if spec.config.lora is not None:
            adapters.add_adapters(self._model, spec.config.lora)
        if spec.config.activation_checkpointing:
            self._checkpoint_activations()
        # DeepSpeed casts a bfloat16 model itself: parameters only, rotary frequencies must not be.
        settings = engine_config(spec.config)
        if "bf16" not in settings:
            self._model.float()
        # Frozen weights have no masters: those that bfloat16 can't hold are kept for the merge.
        self._precise: dict[str, Tensor] = {
            name: p.detach().clone()
            for name, p in self._model.named_parameters()
            if not p.requires_grad and p.dtype == torch.float32 and "bf16" in settings
        }
        autocast = spec.config.dtype == "bfloat16" and "bf16" not in settings
        loss_model = _LossModel(self._model, autocast)
        # torch's fused AdamW. DeepSpeed's own compiles for minutes, its "torch_adam" is not fused
        # (1.3 s a step instead of 0.3 s for SmolLM2-135M on two cores). The rate is set before each
        # step; it is 0 here because some of DeepSpeed's wrappers make a first step on empty
        # gradients, which would already decay the weights.
        learning = [p for p in loss_model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            learning, lr=0.0, weight_decay=spec.config.weight_decay, fused=True
        )
        self._engine, *_ = deepspeed.initialize(
            model=loss_model, optimizer=optimizer, config=settings
        )
        # Forget that first step on empty gradients: Adam's bias correction counts steps.
        self._engine.basic_optimizer.state.clear()
        self.partitions = Partitions(self._engine, spec.config.zero_stage, self._device)
        self._check: Callable[[float], None] | None = None
        self._engine.basic_optimizer.register_step_pre_hook(self._before_step)

    def accumulate(self, step: Step, num_loss_tokens: int) -> dict[int, float]:
        """Adds up the gradients of one step. The summed loss of each of its examples, in nats."""
        self._engine.train()
        micros = step.ranks[self._spec.rank]
        losses = self._no_losses()
        for number, micro in enumerate(micros):
            self._engine.set_gradient_accumulation_boundary(number == len(micros) - 1)
            total = self._forward(micro, losses)
            # See the module's docstring for this denominator.
            loss = total * (self._spec.world_size / num_loss_tokens)
            self._engine.backward(loss, scale_wrt_gas=False)
        return self._shared(losses, step.examples)

    def update(self, rate: float, check: Callable[[float], None]) -> float:
        """One optimizer step. The norm of its gradient before clipping, over all ranks.

        `check` is called with the norm before any weight changes, and may raise.
        """
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = rate
        if self._spec.config.zero_stage == 0:
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

    def evaluate(self, step: Step) -> dict[int, float]:
        """The summed loss of each of the step's examples, in nats; nothing is learned."""
        self._engine.eval()
        losses = self._no_losses()
        with torch.no_grad():
            for micro in step.ranks[self._spec.rank]:
                self._forward(micro, losses)
        return self._shared(losses, step.examples)

    def settle(self) -> None:
        """Makes the weights what will be saved, in the start folder's dtypes; training is over.

        Rank 0 also collects them in main memory. One parameter at a time is put together from what
        the ranks hold, so under ZeRO-3 the whole model never is on one device. All ranks draw the
        same random numbers, so they settle on the same weights.
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
                [parameter], modifier_rank=0, enabled=self._spec.config.zero_stage == 3
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
        if parameter.requires_grad and self._spec.config.zero_stage > 0:
            exact = safe_get_full_fp32_param(parameter).detach().float().cpu()
            return exact
        partitioned = self._spec.config.zero_stage == 3
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            exact = parameter.detach().float().cpu()
            # Partitioned again, the parameter's memory is gone.
            return exact.clone() if partitioned else exact

    def save(self, output_dir: str) -> None:
        """Rank 0 writes what `settle` left; all ranks return when it is there.

        Raises MachineError on every rank if it can't be written.
        """
        problem: MachineError | None = None
        if self._spec.rank == 0:
            try:
                save_model(self._model, self._weights, self._spec.base_model_dir, output_dir)
            except MachineError as error:
                problem = error
        failed = torch.tensor([float(problem is not None)], device=self._device)
        distributed.all_reduce(failed)
        if problem is not None:
            raise problem
        if failed.item():
            raise MachineError(f"{output_dir}: rank 0 can't save the model")

    def close(self) -> None:
        """Frees model, gradients and optimizer."""
        self._engine.destroy()
        del self._engine, self._model, self._weights, self.partitions
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, micro: MicroBatch, losses: Tensor) -> Tensor:
        """The loss of a micro-batch, summed; each example's share is added to `losses`."""
        batch = make_batch([self._examples[i] for i in micro], self.packed, self._device)
        nats: Tensor = self._engine(batch.rows, batch.columns, batch.targets, **batch.inputs)
        if not micro:
            return nats.sum() * 0.0
        owners = torch.tensor(micro, device=self._device)[batch.owners]
        losses.index_add_(0, owners, nats.detach().to(losses.dtype))
        return nats.sum()

    def _no_losses(self) -> Tensor:
        return torch.zeros(len(self._examples), dtype=torch.float64, device=self._device)

    def _shared(self, losses: Tensor, members: Sequence[int]) -> dict[int, float]:
        """Each member's loss on every rank: it was computed on one, the others add zero."""
        distributed.all_reduce(losses)
        values = losses.tolist()
        return {i: values[i] for i in members}

    def _make_packable(self) -> bool:
        if not self._spec.config.packing:
            return False
        problem = make_packable(self._model)
        if problem is not None and self._spec.rank == 0:
            _LOG.warning(
                "%s: examples are padded, not packed: %s",
                self._model.config.model_type,
                problem,
            )
        return problem is None

    def _checkpoint_activations(self) -> None:
        """Layers keep only their input, and compute the rest again in the backward pass."""
        if not self._model.supports_gradient_checkpointing:
            raise ConfigError(
                f"trainer.activation_checkpointing: model {self._model.config.model_type} "
                "does not support it; turn it off"
            )
        self._model.gradient_checkpointing_enable({"use_reentrant": False})

    def _check_lengths(self) -> None:
        limit = max_positions(self._model)
        for example in self._examples:
            if len(example.input_ids) > limit:
                raise DataError(
                    f"training example {example.dialogue_id} of pair {example.pair_id}: "
                    f"{len(example.input_ids)} tokens, the model takes {limit}"
                )
