"""(torch, DeepSpeed) One training stage on one rank: model, engine, steps, and the saved folder.

    accumulate(step): each micro-batch forward and backward -> loss of every example, on every rank
    update(rate): one optimizer step -> gradient norm
    save(folder): weights gathered parameter by parameter, written by rank 0

The denominator of the loss. An optimizer step learns from n loss tokens: those of all examples of
the batch, on all ranks and in all micro-batches. Its loss is (sum of -log p over these n) / n, so
every token weighs the same wherever it happens to be computed. DeepSpeed averages gradients over
ranks, therefore each rank's sum is multiplied by (number of ranks / n); gradient accumulation adds
micro-batches up, without a mean (scale_wrt_gas=False).

Precision. With bfloat16, DeepSpeed keeps float32 master weights and Adam moments, so updates far
below a bfloat16 weight's resolution add up over the steps; only the saved weights are rounded.
"""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from torch import Tensor, distributed, nn

from stargate.actors.modeling import (
    SelectedLogits,
    load_model,
    max_positions,
    save_model,
    token_losses,
)
from stargate.config import TrainerConfig
from stargate.errors import DataError, MachineError
from stargate.schedule import MicroBatch, Step
from stargate.types import TrainingExample

if TYPE_CHECKING:
    from stargate.actors.trainer import TrainerSpec

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
        "optimizer": {
            "type": "AdamW",
            # lr is set before each step. It is 0 here because some of DeepSpeed's wrappers make a
            # first step on empty gradients, which would already decay the weights.
            "params": {"lr": 0.0, "weight_decay": config.weight_decay, "torch_adam": True},
        },
        "steps_per_print": 10**9,
    }
    if config.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
        if config.zero_stage > 0:  # stage 0 accumulates in the model's own dtype only
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


class _LossModel(nn.Module):
    """-log p of each target, predicted at (rows[p], columns[p]); (P,), in nats."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._logits = SelectedLogits(model)

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        logits, _ = self._logits(rows, columns, input_ids=input_ids, use_cache=False)
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
        # What the saved weights are rounded to: the start folder has its dtypes from the base.
        self._dtypes = {name: p.dtype for name, p in self._model.named_parameters()}
        if spec.config.dtype == "float32":
            self._model.float()
        # For bfloat16 DeepSpeed casts, the parameters only: rotary frequencies must stay float32.
        loss_model = _LossModel(self._model)
        self._engine, *_ = deepspeed.initialize(
            model=loss_model,
            model_parameters=list(loss_model.parameters()),
            config=engine_config(spec.config),
        )
        # Forget that first step on empty gradients: Adam's bias correction counts steps.
        self._engine.basic_optimizer.state.clear()

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

    def update(self, rate: float) -> float:
        """One optimizer step. The norm of its gradient before clipping, over all ranks."""
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = rate
        norm: Any = None
        if self._spec.config.zero_stage == 0 and self._spec.config.dtype == "float32":
            # The one case in which DeepSpeed clips without telling the norm.
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def evaluate(self, step: Step) -> dict[int, float]:
        """The summed loss of each of the step's examples, in nats; nothing is learned."""
        self._engine.eval()
        losses = self._no_losses()
        with torch.no_grad():
            for micro in step.ranks[self._spec.rank]:
                self._forward(micro, losses)
        return self._shared(losses, step.examples)

    def save(self, output_dir: str) -> None:
        """Rank 0 writes the folder; all ranks return when it is there, or raise MachineError."""
        weights = self._gather()
        problem: MachineError | None = None
        if self._spec.rank == 0:
            try:
                save_model(self._model, weights, self._spec.base_model_dir, output_dir)
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
        del self._engine, self._model
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, micro: MicroBatch, losses: Tensor) -> Tensor:
        """The loss of a micro-batch, summed; each example's share is added to `losses`."""
        # A rank that has run out of examples takes part with one token that weighs nothing.
        ids = [self._examples[i].input_ids for i in micro] or [(0, 0)]
        places = [
            (row, column - 1, ids[row][column], i)
            for row, i in enumerate(micro)
            for column, learned in enumerate(self._examples[i].loss_mask)
            if learned
        ] or [(0, 0, 0, 0)]
        width = max(map(len, ids))
        # Padding is on the right: a causal model never looks there, so no mask is needed.
        padded = torch.tensor([[*row, *([0] * (width - len(row)))] for row in ids])
        rows, columns, targets, owners = torch.tensor(places).to(self._device).unbind(1)
        nats: Tensor = self._engine(padded.to(self._device), rows, columns, targets)
        if not micro:
            return nats.sum() * 0.0
        losses.index_add_(0, owners, nats.detach().to(losses.dtype))
        return nats.sum()

    def _no_losses(self) -> Tensor:
        return torch.zeros(len(self._examples), dtype=torch.float64, device=self._device)

    def _shared(self, losses: Tensor, members: Sequence[int]) -> dict[int, float]:
        """Each member's loss on every rank: it was computed on one, the others add zero."""
        distributed.all_reduce(losses)
        values = losses.tolist()
        return {i: values[i] for i in members}

    def _gather(self) -> dict[str, Tensor]:
        """The whole weights in main memory, on rank 0 only.

        Under ZeRO-3 each rank holds a part of every parameter; one parameter at a time is put
        together on the device, so the whole model never is. Tied weights appear once.
        """
        weights: dict[str, Tensor] = {}
        for name, parameter in self._model.named_parameters():
            with deepspeed.zero.GatheredParameters(
                [parameter], enabled=self._spec.config.zero_stage == 3
            ):
                if self._spec.rank == 0:
                    value = parameter.detach().to("cpu", self._dtypes[name], copy=True)
                    weights[name] = value.contiguous()
        if self._spec.rank == 0:
            saved = self._model.state_dict().keys()
            for name, buffer in self._model.named_buffers():
                if name in saved:
                    weights[name] = buffer.detach().to("cpu", copy=True)
        return weights

    def _check_lengths(self) -> None:
        limit = max_positions(self._model)
        for example in self._examples:
            if len(example.input_ids) > limit:
                raise DataError(
                    f"training example {example.dialogue_id} of pair {example.pair_id}: "
                    f"{len(example.input_ids)} tokens, the model takes {limit}"
                )
