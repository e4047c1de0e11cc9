"""(torch, DeepSpeed) A trainer rank as a run uses it, one step at a time."""

from multiprocessing.connection import Connection
from pathlib import Path

from stargate.actors.training.backend import backend_class
from stargate.actors.training.objectives import make_objective
from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.actors.training.stage import TrainingStage
from stargate.benchmarks.train_work import Job, StepTime
from stargate.resources.machine import free_port


def play(job: Job, pipe: Connection) -> None:
    """Steps of a training stage; then settles and saves."""
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
