"""(torch, DeepSpeed) A trainer rank as a run uses it, one step at a time."""

from pathlib import Path

from stargate.actors.training.deepspeed_backend import Finetuning
from stargate.actors.training.rank import TrainerRank, TrainerSpec
from stargate.benchmarks.train_sides import Job, Turns
from stargate.resources.machine import free_port


def play(job: Job, turns: Turns) -> None:
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
        turns.is_ready(stage.packed)
        for step in job.steps:
            turns.wait()
            start = turns.now()
            num_loss_tokens = sum(job.examples[i].num_loss_tokens for i in step.examples)
            losses = stage.accumulate(step, num_loss_tokens)
            stage.update(job.config.learning_rate, lambda norm: None)
            turns.stepped(turns.now() - start, sum(losses.values()) / num_loss_tokens)
        turns.wait()
        closing = {
            "settle_s": turns.timed(stage.settle),
            "save_s": turns.timed(lambda: stage.save(str(Path(job.work_dir) / "ours"))),
        }
        turns.finished(closing)
    finally:
        stage.close()
        rank.shutdown()
