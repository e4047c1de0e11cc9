"""(torch, DeepSpeed) Our trainer rank, and a bare loop: the least that training can cost.

Both have the same micro-batches and the same model (packed attention, output layer at loss
positions only, LoRA and checkpointing if asked for), in the same precision.
"""

from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from stargate.actors.modeling.model import SelectedLogits, load_model, token_losses
from stargate.actors.training import lora as adapters
from stargate.actors.training.backend import backend_class
from stargate.actors.training.batches import make_batch
from stargate.actors.training.objectives import make_objective
from stargate.actors.training.packing import make_packable
from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.actors.training.stage import TrainingStage
from stargate.benchmarks.train_work import Job, StepTime
from stargate.resources.machine import free_port


def play_ours(job: Job, pipe: Connection) -> None:
    """A trainer rank as a run uses it, one step at a time; then settles and saves."""
    spec = TrainerSpec(
        base_model_dir=job.model_dir,
        config=job.config,
        master_port=free_port(),
        num_threads=job.num_threads,
        device=job.device,
        seed=job.seed,
    )
    rank = TrainerRank(spec)
    rank.start()
    backend = backend_class(job.config.backend)(spec, job.model_dir)
    try:
        stage = TrainingStage(spec, backend, make_objective(spec.objective), job.examples)
        pipe.send(backend.packed)
        for step in job.steps:
            pipe.recv()
            start = job.now()
            loss, _ = stage.learn(step, job.config.learning_rate, [], "bench train")
            pipe.send(StepTime(job.now() - start, loss))
        pipe.recv()
        start = job.now()
        backend.settle()
        settled = job.now()
        backend.save(str(Path(job.work_dir) / "ours"))
        closing = {"settle_s": settled - start, "save_s": job.now() - settled}
        pipe.send({**closing, "peak_memory_gb": job.peak_memory_gb()})
    finally:
        backend.close()
        rank.shutdown()


def play_bare(job: Job, pipe: Connection) -> None:
    """Forward, backward and AdamW in plain torch: with bfloat16 a bfloat16 model beside float32
    masters, float32 sums of gradients and float32 moments.
    """
    torch.set_num_threads(job.num_threads)
    torch.manual_seed(job.seed)
    config, device = job.config, torch.device(job.device)
    model = load_model(job.model_dir, None, "cpu", False)
    if config.lora is not None:
        adapters.add_adapters(model, config.lora)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # Parameters only: rotary frequencies must stay float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, config.dtype))
    model.to(device)
    packed = config.packing and make_packable(model) is None
    model.train()
    logits = SelectedLogits(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    masters = [nn.Parameter(p.detach().float().clone()) for p in learning]
    optimizer = torch.optim.AdamW(
        masters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    pipe.send(packed)
    for step in job.steps:
        pipe.recv()
        start = job.now()
        num_loss_tokens = job.num_loss_tokens(step)
        nats = 0.0
        for micro in step.ranks[0]:
            batch = make_batch([job.examples[i] for i in micro], packed, device)
            chosen, _ = logits(batch.rows, batch.columns, use_cache=False, **batch.inputs)
            total = token_losses(chosen, batch.targets).sum()
            torch.autograd.backward(total / num_loss_tokens)
            nats += total.item()
            for parameter, master in zip(learning, masters, strict=True):
                if parameter.grad is None:
                    continue
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad += parameter.grad
                parameter.grad = None
        nn.utils.clip_grad_norm_(masters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for parameter, master in zip(learning, masters, strict=True):
                parameter.copy_(master)
        pipe.send(StepTime(job.now() - start, nats / num_loss_tokens))
    pipe.recv()
    pipe.send({"peak_memory_gb": job.peak_memory_gb()})
