"""(torch, DeepSpeed) One training stage on one rank: model, engine, steps, and the saved folder.

    accumulate(step): each micro-batch forward and backward -> loss of every example, on every rank
    update(rate): one optimizer step -> gradient norm
    settle(): the weights become what will be saved;  evaluate(step): the loss under them
    save(folder): rank 0 writes them

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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, distributed, nn

from stargate.actors.modeling import (
    SelectedLogits,
    load_model,
    max_positions,
    round_unbiased,
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

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self._autocast):
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
        self._weights: dict[str, Tensor] = {}
        # What the saved weights are rounded to: the start folder has its dtypes from the base.
        self._dtypes = {name: p.dtype for name, p in self._model.named_parameters()}
        # DeepSpeed casts a bfloat16 model itself: parameters only, rotary frequencies must not be.
        settings = engine_config(spec.config)
        if "bf16" not in settings:
            self._model.float()
        autocast = spec.config.dtype == "bfloat16" and "bf16" not in settings
        loss_model = _LossModel(self._model, autocast)
        # torch's fused AdamW. DeepSpeed's own compiles for minutes, its "torch_adam" is not fused
        # (1.3 s a step instead of 0.3 s for SmolLM2-135M on two cores). The rate is set before each
        # step; it is 0 here because some of DeepSpeed's wrappers make a first step on empty
        # gradients, which would already decay the weights.
        optimizer = torch.optim.AdamW(
            loss_model.parameters(), lr=0.0, weight_decay=spec.config.weight_decay, fused=True
        )
        self._engine, *_ = deepspeed.initialize(
            model=loss_model, optimizer=optimizer, config=settings
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
        if self._spec.config.zero_stage == 0:
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

    def settle(self) -> None:
        """Makes the weights what will be saved, in the start folder's dtypes; training is over.

        Rank 0 also collects them in main memory. One parameter at a time is put together from what
        the ranks hold, so under ZeRO-3 the whole model never is on one device. All ranks draw the
        same random numbers, so they settle on the same weights.
        """
        generator = torch.Generator().manual_seed(self._spec.seed)
        stage = self._spec.config.zero_stage
        for name, parameter in self._model.named_parameters():
            exact = parameter if stage == 0 else safe_get_full_fp32_param(parameter)
            value = round_unbiased(exact.detach().float().cpu(), self._dtypes[name], generator)
            with deepspeed.zero.GatheredParameters(
                [parameter], modifier_rank=0, enabled=stage == 3
            ):
                parameter.data.copy_(value)
            if self._spec.rank == 0:
                self._weights[name] = value
        saved = self._model.state_dict().keys()
        for name, buffer in self._model.named_buffers():
            if self._spec.rank == 0 and name in saved:
                self._weights[name] = buffer.detach().cpu()

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
        del self._engine, self._model, self._weights
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

    def _check_lengths(self) -> None:
        limit = max_positions(self._model)
        for example in self._examples:
            if len(example.input_ids) > limit:
                raise DataError(
                    f"training example {example.dialogue_id} of pair {example.pair_id}: "
                    f"{len(example.input_ids)} tokens, the model takes {limit}"
                )
