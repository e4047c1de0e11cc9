"""(torch, DeepSpeed) A trainer rank as a run uses it, one step at a time."""

from multiprocessing.connection import Connection
from pathlib import Path

from stargate.actors.training.deepspeed_backend import Finetuning
from stargate.actors.training.rank import TrainerRank, TrainerSpec
from stargate.benchmarks.train_work import Job, StepTime
from stargate.resources.machine import free_port


def play(job: Job, pipe: Connection) -> None:
    """Steps with Finetuning's own methods; then settles and saves."""
    spec = TrainerSpec(
        base_model_dir=job.model_dir,
        config=job.config,
        master_port=free_port(),
        num_threads=job.num_threads,
        device=job.device,
        trust_remote_code=job.trust_remote_code,
        seed=job.seed,
    )
    rank = TrainerRank(spec)
    rank.start()
    stage = Finetuning(spec, job.model_dir, job.examples)
    try:
        pipe.send(stage.packed)
        for step in job.steps:
            pipe.recv()
            start = job.now()
            num_loss_tokens = job.num_loss_tokens(step)
            losses = stage.accumulate(step, num_loss_tokens)
            stage.update(job.config.learning_rate, lambda norm: None)
            pipe.send(StepTime(job.now() - start, sum(losses.values()) / num_loss_tokens))
        pipe.recv()
        start = job.now()
        stage.settle()
        settled = job.now()
        stage.save(str(Path(job.work_dir) / "ours"))
        closing = {"settle_s": settled - start, "save_s": job.now() - settled}
        pipe.send({**closing, "peak_memory_gb": job.peak_memory_gb()})
    finally:
        stage.close()
        rank.shutdown()
