"""One rank of the trainer: from selected dialogues to the saved m_{t+1}.

    train(examples, start, output) on every rank, with the same examples
      -> step_plan.py: split, steps, micro-batches of each rank, learning rates
      -> checkpoints.py: goes on where an earlier attempt was, if it left a checkpoint
      -> stage.py: loss and gradient of each step, by an objective      (ranks meet in collectives)
      -> a backend's model and optimizer -> a Hugging Face folder, written by rank 0
         (all ranks return once it is there)

`train` runs in a thread of its own, so that `progress` answers meanwhile.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from stargate.actors.training.spec import TrainerSpec, rank_environment
from stargate.actors.training.step_plan import (
    Step,
    learning_rate,
    plan_digest,
    plan_steps,
    share_out,
    split_validation,
)
from stargate.errors import EngineError
from stargate.records.training_checkpoints import (
    Identity,
    TrainingLog,
    examples_digest,
    model_digest,
    settings_of,
)
from stargate.resources.account import complete_account
from stargate.types import TrainingExample, TrainResult

if TYPE_CHECKING:
    from stargate.actors.training.backend import Backend
    from stargate.actors.training.checkpoints import Checkpoints
    from stargate.actors.training.stage import TrainingStage


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a training stage is. `loss` is the last step's; `tokens` are those of all ranks.

    `number` counts the stages of this rank, so that a finished one is not taken for the next.
    `total_steps` is 0 until the steps are planned, `tokens_per_s` until one is done. `first_step`
    are the steps that an earlier attempt did; tokens are without theirs. The screen shows `notes`.
    """

    number: int = 0
    steps: int = 0
    total_steps: int = 0
    tokens: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0
    first_step: int = 0
    notes: tuple[str, ...] = ()


class TrainerRank:
    """One rank. Wrapped by `ray.remote` elsewhere; needs no Ray."""

    _backend_class: "type[Backend]"  # from `start` on

    def __init__(self, spec: TrainerSpec) -> None:
        self._spec = spec
        self._progress = TrainProgress()
        self._started = False

    def start(self) -> None:
        """Waits until all ranks have met. Sets this process's environment."""
        if self._started:
            return
        complete_account()
        os.environ.update(rank_environment(self._spec))
        from stargate.actors.process.heap import keep_freed_memory
        from stargate.actors.process.log_escaping import redirect_output
        from stargate.actors.training.backend import backend_class

        redirect_output(self._spec.log_file)
        if self._spec.device == "cpu":
            keep_freed_memory()
        self._backend_class = backend_class(self._spec.config.backend)
        self._backend_class.join(self._spec.device)
        self._started = True

    async def train(
        self,
        examples: Sequence[TrainingExample],
        start_model_dir: str,
        output_dir: str,
        version: int,
        checkpoint_dir: str | None = None,
    ) -> TrainResult:
        """Trains on from `start_model_dir` and saves m_`version` as `output_dir`.

        Every rank is called with the same arguments. Checkpoints go to `checkpoint_dir`, which all
        ranks see, and one that is there already is where training goes on; None: there are none.
        Raises DivergenceError naming step and pairs, DataError for examples that can't be trained
        on, MachineError if the folder can't be written; then there is no folder.
        """
        if not self._started:
            raise EngineError("trainer: train() was called before start() or after shutdown()")
        self._progress = TrainProgress(self._progress.number + 1)
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        return await asyncio.to_thread(
            self._train, examples, start_model_dir, output_dir, f"m_{version}", folder
        )

    def progress(self) -> TrainProgress:
        """The present stage's progress; the finished one's until the next begins."""
        return self._progress

    def shutdown(self) -> None:
        """Leaves the group of ranks. Can be called twice."""
        if not self._started:
            return
        self._started = False
        self._backend_class.leave()

    def _train(
        self,
        examples: Sequence[TrainingExample],
        start_model_dir: str,
        output_dir: str,
        name: str,
        checkpoint_dir: Path | None,
    ) -> TrainResult:
        from stargate.actors.process.heap import release_freed_memory
        from stargate.actors.training.checkpoints import Checkpoints, Training
        from stargate.actors.training.objectives import make_objective
        from stargate.actors.training.stage import TrainingStage, check_examples

        config, spec = self._spec.config, self._spec
        # In an order of their own: when their dialogues finished depends on timing.
        ordered = sorted(examples, key=lambda e: (e.pair_id, e.dialogue_id, e.input_ids, e.weights))
        check_examples(ordered, config.max_length)
        split = split_validation(
            [example.pair_id for example in ordered], config.validation_fraction, spec.seed
        )
        lengths = [len(example.input_ids) for example in ordered]
        groups = [example.group for example in ordered]
        backend = self._backend_class(spec, start_model_dir)
        try:
            objective = make_objective(spec.objective, **spec.objective_settings)
            stage = TrainingStage(spec, backend, objective, ordered)
            steps = plan_steps(
                split.train, lengths, stage.layout, config.num_epochs, spec.seed, groups
            )
            # Once, and only if it is needed: it reads all start weights.
            identify = partial(_identify, spec, backend.name, ordered, steps, start_model_dir)
            training = Training(name, len(steps), spec, cache(identify))
            checkpoints = Checkpoints(backend, training, checkpoint_dir, self._note)
            gaps = self._score_start(stage, steps)  # a checkpoint's weights come later
            log = self._run_steps(stage, steps, ordered, name, checkpoints)
            backend.settle()
            validation_loss = None
            if split.validation:
                held_out = share_out(split.validation, lengths, stage.layout, groups)
                validation_loss = stage.evaluate(held_out, "validation after training")
            backend.save(output_dir)
        finally:
            backend.close()
            if spec.device == "cpu":
                release_freed_memory()  # gigabytes, which the engines' neighbours want now
        return TrainResult(
            losses=tuple(log.losses),
            grad_norms=tuple(log.grad_norms),
            learning_rates=tuple(log.rates),
            validation_loss=validation_loss,
            num_examples=len(split.train),
            num_tokens=log.num_tokens,
            num_loss_tokens=log.num_loss_tokens,
            seconds=log.seconds,
            model_dir=output_dir,
            num_validation_examples=len(split.validation),
            num_repeated_steps=checkpoints.num_repeated,
            engine_gap_mean=tuple(mean for mean, _ in gaps),
            engine_gap_max=tuple(most for _, most in gaps),
        )

    def _note(self, text: str) -> None:
        self._progress = replace(self._progress, notes=(*self._progress.notes, text))

    def _score_start(
        self, stage: "TrainingStage", steps: Sequence[Step]
    ) -> list[tuple[float, float]]:
        """The engine gap of each step, said aloud; none where the engine's are not known."""
        stage.score_start()
        gaps = [gap for step in steps if (gap := stage.engine_gap(step)) is not None]
        if gaps:
            mean, most = fmean(mean for mean, _ in gaps), max(most for _, most in gaps)
            self._note(
                f"the engine's log-probs differ from the trainer's by {mean:.4f} nats on average, "
                f"by {most:.3f} at most"
            )
        return gaps

    def _run_steps(
        self,
        stage: "TrainingStage",
        steps: Sequence[Step],
        examples: Sequence[TrainingExample],
        name: str,
        checkpoints: "Checkpoints",
    ) -> TrainingLog:
        """All optimizer steps that no checkpoint has."""
        config, log = self._spec.config, checkpoints.restore()
        first, known_tokens, known_seconds = len(log.losses), log.num_tokens, log.seconds
        self._progress = replace(
            self._progress, first_step=first, steps=first, total_steps=len(steps)
        )
        started = time.perf_counter()
        for number, step in enumerate(steps[first:], first):
            rate = learning_rate(number, len(steps), config.learning_rate, config.warmup_fraction)
            where = f"training {name}, step {number + 1} of {len(steps)}"
            loss, norm = stage.learn(step, rate, log.grad_norms, where)
            log.losses.append(loss)
            log.grad_norms.append(norm)
            log.rates.append(rate)
            log.num_tokens += sum(len(examples[i].input_ids) for i in step.examples)
            log.num_loss_tokens += sum(examples[i].num_loss_tokens for i in step.examples)
            log.seconds = known_seconds + time.perf_counter() - started
            self._progress = replace(
                self._progress,
                steps=number + 1,
                tokens=log.num_tokens - known_tokens,
                loss=loss,
                tokens_per_s=log.num_tokens / log.seconds,
            )
            checkpoints.after_step(log)
        return log


def _identify(
    spec: TrainerSpec,
    engine: str,
    examples: Sequence[TrainingExample],
    steps: Sequence[Step],
    start_model_dir: str,
) -> Identity:
    """What a checkpoint of this training must have been written by."""
    settings = sorted(spec.objective_settings.items())
    return Identity(
        num_ranks=spec.world_size,
        seed=spec.seed,
        engine=engine,
        objective=" ".join([spec.objective, *(f"{k}={v}" for k, v in settings)]),
        config=settings_of(spec.config),
        examples=examples_digest(examples),
        plan=plan_digest(steps),
        model=model_digest(Path(start_model_dir)),
    )
