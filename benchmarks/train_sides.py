"""The three sides of `stargate bench train`, each in a process of its own, one step at a time.

    parent                       child: import, load, DeepSpeed or Trainer
      wait for `Ready`      <--  seconds of all that
      step()                -->  one optimizer step  --> `StepTime`
      finish()              -->  what follows training (settle, save) --> `Finished`

While one side makes a step the others wait in a pipe, so that all sides meet the same machine.
"""

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from stargate.algorithm.step_plan import Step
from stargate.config.run import TrainerConfig
from stargate.errors import EngineError
from stargate.types import TrainingExample

Side = Literal["ours", "padded_trainer", "bare_loop"]
SIDES: tuple[Side, ...] = ("ours", "padded_trainer", "bare_loop")
# Seconds within which a side must answer: loading a large model, or one step of it on a CPU.
_DEADLINE_S = 600.0


@dataclass(frozen=True)
class Job:
    """What every side trains: `steps` are the packed (or sorted) micro-batches of ours."""

    model_dir: str
    config: TrainerConfig
    device: Literal["cpu", "cuda"]
    num_threads: int
    examples: Sequence[TrainingExample]
    steps: Sequence[Step]
    work_dir: str
    trust_remote_code: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Ready:
    """A side that waits for its first step. `setup_s` is from process start."""

    setup_s: float
    packed: bool


@dataclass(frozen=True)
class StepTime:
    """One optimizer step: its seconds and its mean loss per loss token, in nats."""

    seconds: float
    loss: float


@dataclass(frozen=True)
class Finished:
    """`closing` are seconds by phase after the last step; `peak_memory_gb` is this process's:

    main memory, or the GPU's if there is one.
    """

    closing: dict[str, float]
    peak_memory_gb: float


class Worker:
    """A side in its process. Close it whatever happens."""

    def __init__(self, side: Side, job: Job) -> None:
        self.side = side
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(side, job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> Ready:
        """Waits until it is set up."""
        answer: Ready = self._answer(Ready)
        return answer

    def step(self) -> StepTime:
        """Lets it make its next step."""
        self._pipe.send("step")
        answer: StepTime = self._answer(StepTime)
        return answer

    def finish(self) -> Finished:
        """Lets it end; after its last step."""
        self._pipe.send("finish")
        answer: Finished = self._answer(Finished)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self, kind: type) -> Any:
        if not self._pipe.poll(_DEADLINE_S):
            raise EngineError(f"bench train: {self.side} has not answered in {_DEADLINE_S:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise EngineError(f"bench train: the process of {self.side} has died") from error
        if not isinstance(answer, kind):
            raise EngineError(f"bench train: {self.side} failed: {answer}")
        return answer


def _serve(side: Side, job: Job, pipe: Connection) -> None:
    """The child's whole life."""
    started = time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = str(job.num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    log = Path(job.work_dir) / f"{side}.log"
    try:
        from stargate.actors.training.modeling import redirect_output

        redirect_output(str(log))
        play = _SIDES[side]()
        play(job, Turns(pipe, started, job.device))
    except EOFError:
        return  # the parent is gone
    except Exception as error:  # whatever it is, the parent is the one to see it
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")


class Turns:
    """The child's end of the pipe."""

    def __init__(self, pipe: Connection, started: float, device: str) -> None:
        self._pipe = pipe
        self._started = started
        self._device = device

    def is_ready(self, packed: bool) -> None:
        self._pipe.send(Ready(self.now() - self._started, packed))

    def wait(self) -> None:
        """Until the parent asks for the next step, or for the end."""
        self._pipe.recv()

    def stepped(self, seconds: float, loss: float) -> None:
        self._pipe.send(StepTime(seconds, loss))

    def finished(self, closing: dict[str, float]) -> None:
        self._pipe.send(Finished(closing, _peak_memory_gb(self._device)))

    def now(self) -> float:
        """Seconds, when all that the device was given is done."""
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, what: Callable[[], Any]) -> float:
        """The seconds that a call takes."""
        start = self.now()
        what()
        return self.now() - start


def _peak_memory_gb(device: str) -> float:
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated() / 2**30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _ours() -> Callable[[Job, Turns], None]:
    from stargate.benchmarks.train_ours import play

    return play


def _padded_trainer() -> Callable[[Job, Turns], None]:
    from stargate.benchmarks.train_padded import play

    return play


def _bare_loop() -> Callable[[Job, Turns], None]:
    from stargate.benchmarks.train_bare import play

    return play


_SIDES = {"ours": _ours, "padded_trainer": _padded_trainer, "bare_loop": _bare_loop}
