"""One rank of the trainer: from selected dialogues to the saved m_{t+1}.

    train(examples, start, output) on every rank, with the same examples
      -> step_plan.py: split, steps, micro-batches of each rank, learning rates
      -> checkpoints.py: goes on where an earlier attempt was, if it left a checkpoint
      -> deepspeed_backend.py: DeepSpeed does the steps          (ranks meet in collectives)
      -> a Hugging Face folder, written by rank 0         (all ranks return once it is there)

`train` runs in a thread of its own, so that `progress` answers meanwhile.
"""

import asyncio
import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stargate.algorithm.step_plan import (
    Layout,
    Split,
    Step,
    learning_rate,
    plan_steps,
    share_out,
    split_validation,
)
from stargate.config.run import TrainerConfig
from stargate.errors import DataError, DivergenceError, EngineError
from stargate.records.training_checkpoints import (
    Identity,
    TrainingLog,
    examples_digest,
    model_digest,
    plan_digest,
    settings_of,
)
from stargate.types import TrainingExample, TrainResult

if TYPE_CHECKING:
    from stargate.actors.training.checkpoints import Checkpoints
    from stargate.actors.training.deepspeed_backend import Finetuning

# Pair ids that one error message names.
_MAX_NAMED = 8
# Steps whose gradient norms are known before a later one is compared with them.
_MIN_EARLIER_NORMS = 4
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class TrainerSpec:
    """All that one rank needs to start; plain values, so that it travels to any node.

    `base_model_dir` gives every saved model its config, tokenizer and chat template.
    """

    base_model_dir: str
    config: TrainerConfig
    rank: int = 0
    world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    num_threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    log_file: str | None = None
    trust_remote_code: bool = False
    seed: int = 0


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

    def __init__(self, spec: TrainerSpec) -> None:
        self._spec = spec
        self._progress = TrainProgress()
        self._started = False

    def start(self) -> None:
        """Imports DeepSpeed and waits until all ranks have met. Sets this process's environment."""
        if self._started:
            return
        os.environ.update(rank_environment(self._spec))
        from stargate.actors.runtime.heap import keep_freed_memory
        from stargate.actors.training.deepspeed_backend import join_ranks
        from stargate.actors.training.modeling import redirect_output

        redirect_output(self._spec.log_file)
        if self._spec.device == "cpu":
            keep_freed_memory()
        join_ranks(self._spec.device)
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
        from stargate.actors.training.deepspeed_backend import leave_ranks

        leave_ranks()

    def _train(
        self,
        examples: Sequence[TrainingExample],
        start_model_dir: str,
        output_dir: str,
        name: str,
        checkpoint_dir: Path | None,
    ) -> TrainResult:
        from stargate.actors.runtime.heap import release_freed_memory
        from stargate.actors.training.checkpoints import Checkpoints, Training
        from stargate.actors.training.deepspeed_backend import Finetuning

        config, spec = self._spec.config, self._spec
        # In an order of their own: when their dialogues finished depends on timing.
        ordered = sorted(examples, key=lambda example: (example.pair_id, example.dialogue_id))
        check_examples(ordered, config.max_length)
        split = split_validation(
            [example.pair_id for example in ordered], config.validation_fraction, spec.seed
        )
        lengths = [len(example.input_ids) for example in ordered]
        stage = Finetuning(spec, start_model_dir, ordered)
        try:
            layout = make_layout(spec, stage.packed)
            steps = plan_steps(split.train, lengths, layout, config.num_epochs, spec.seed)

            def identify() -> Identity:
                return identity_of(spec, ordered, steps, start_model_dir)

            training = Training(name, len(steps), spec.rank, config, identify)
            checkpoints = Checkpoints(stage.partitions, training, checkpoint_dir, self._note)
            log = self._run_steps(stage, steps, ordered, name, checkpoints)
            stage.settle()
            validation_loss = _validate(stage, split, ordered, layout)
            stage.save(output_dir)
        finally:
            stage.close()
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
        )

    def _note(self, text: str) -> None:
        self._progress = replace(self._progress, notes=(*self._progress.notes, text))

    def _run_steps(
        self,
        stage: "Finetuning",
        steps: Sequence[Step],
        examples: Sequence[TrainingExample],
        name: str,
        checkpoints: "Checkpoints",
    ) -> TrainingLog:
        """All optimizer steps that no checkpoint has.

        Every rank sees the same losses and norms, so all stop together.
        """
        config, log = self._spec.config, checkpoints.restore()
        first, known_tokens, known_seconds = len(log.losses), log.num_tokens, log.seconds
        self._progress = replace(
            self._progress, first_step=first, steps=first, total_steps=len(steps)
        )
        started = time.perf_counter()
        for number, step in enumerate(steps[first:], first):
            where = f"training {name}, step {number + 1} of {len(steps)}"
            num_loss_tokens = sum(examples[i].num_loss_tokens for i in step.examples)
            losses = stage.accumulate(step, num_loss_tokens)
            _check_losses(losses, examples, where)
            rate = learning_rate(number, len(steps), config.learning_rate, config.warmup_fraction)
            pairs = _name_pairs(step.examples, examples)

            def check(norm: float, where: str = where, pairs: str = pairs) -> None:
                if (problem := norm_problem(norm, log.grad_norms, config)) is not None:
                    raise DivergenceError(
                        f"{where}: the gradient norm {problem}, on pairs {pairs}; nothing was saved"
                    )

            norm = stage.update(rate, check)
            log.losses.append(sum(losses.values()) / num_loss_tokens)
            log.grad_norms.append(norm)
            log.rates.append(rate)
            log.num_tokens += sum(len(examples[i].input_ids) for i in step.examples)
            log.num_loss_tokens += num_loss_tokens
            log.seconds = known_seconds + time.perf_counter() - started
            self._progress = replace(
                self._progress,
                steps=number + 1,
                tokens=log.num_tokens - known_tokens,
                loss=log.losses[-1],
                tokens_per_s=log.num_tokens / log.seconds,
            )
            checkpoints.after_step(log)
        return log


def identity_of(
    spec: TrainerSpec,
    examples: Sequence[TrainingExample],
    steps: Sequence[Step],
    start_model_dir: str,
) -> Identity:
    """What a checkpoint of this training must have been written by. Reads all start weights."""
    return Identity(
        num_ranks=spec.world_size,
        seed=spec.seed,
        engine=f"deepspeed {metadata.version('deepspeed')}",
        config=settings_of(spec.config),
        examples=examples_digest(examples),
        plan=plan_digest(steps),
        model=model_digest(Path(start_model_dir)),
    )


def make_layout(spec: TrainerSpec, packed: bool) -> Layout:
    """How steps are laid out. A packed row has at most the tokens of a full padded micro-batch."""
    config = spec.config
    row = config.row_tokens or config.micro_batch_size * config.max_length
    return Layout(
        config.batch_size, config.micro_batch_size, spec.world_size, row if packed else None
    )


def norm_problem(norm: float, earlier: Sequence[float], config: TrainerConfig) -> str | None:
    """What is wrong with a step's gradient norm; None if nothing is.

    Norms differ between models and fall while a stage learns, so the limit is a multiple of the
    median of the stage's earlier steps, once there are a few. A norm that would not even be clipped
    is never too large.
    """
    if not math.isfinite(norm) or norm < 0:  # DeepSpeed also says -1 for one that is not finite
        return f"is {norm}"
    if len(earlier) < _MIN_EARLIER_NORMS or norm <= config.max_grad_norm:
        return None
    typical = statistics.median(earlier)
    if norm <= config.max_grad_norm_growth * typical:
        return None
    return (
        f"is {norm:.3g}, {norm / typical:.0f} times the median {typical:.3g} of the steps before "
        f"(trainer.max_grad_norm_growth is {config.max_grad_norm_growth:g})"
    )


def _validate(
    stage: "Finetuning", split: Split, examples: Sequence[TrainingExample], layout: Layout
) -> float | None:
    """Mean loss per loss token of the held-out examples, of what is saved; None without any."""
    if not split.validation:
        return None
    lengths = [len(example.input_ids) for example in examples]
    losses = stage.evaluate(share_out(split.validation, lengths, layout))
    _check_losses(losses, examples, "validation after training")
    return sum(losses.values()) / sum(examples[i].num_loss_tokens for i in split.validation)


def check_examples(examples: Sequence[TrainingExample], max_length: int) -> None:
    """Raises DataError naming the first example that can't be trained on.

    Example builders drop and count what is too long or empty, so these are their defects.
    """
    if not examples:
        raise DataError("trainer: there is no example to train on")
    for example in examples:
        where = f"training example {example.dialogue_id} of pair {example.pair_id}"
        if len(example.input_ids) > max_length:
            raise DataError(
                f"{where}: {len(example.input_ids)} tokens, trainer.max_length is {max_length}"
            )
        if not example.num_loss_tokens:
            raise DataError(f"{where}: no token has a weight, so there is nothing to learn")
        if example.weights[0]:
            raise DataError(f"{where}: nothing predicts the first token, so it can't be learned")


def _check_losses(
    losses: Mapping[int, float], examples: Sequence[TrainingExample], where: str
) -> None:
    bad = [i for i, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        raise DivergenceError(
            f"{where}: the loss is {losses[bad[0]]} on {len(bad)} of {len(losses)} examples, "
            f"pairs {_name_pairs(bad, examples)}; nothing was saved"
        )


def _name_pairs(indices: Sequence[int], examples: Sequence[TrainingExample]) -> str:
    pairs = sorted({examples[i].pair_id for i in indices})
    more = f" and {len(pairs) - _MAX_NAMED} more" if len(pairs) > _MAX_NAMED else ""
    return ", ".join(pairs[:_MAX_NAMED]) + more


def rank_environment(spec: TrainerSpec) -> dict[str, str]:
    """What DeepSpeed and torch.distributed read, to be set before either is imported."""
    environment = {
        "DS_ACCELERATOR": spec.device,
        "RANK": str(spec.rank),
        "WORLD_SIZE": str(spec.world_size),
        # Ray shows each actor its own GPU only, under number 0.
        "LOCAL_RANK": str(spec.rank if spec.device == "cpu" else 0),
        "MASTER_ADDR": spec.master_addr,
        "MASTER_PORT": str(spec.master_port),
        "OMP_NUM_THREADS": str(spec.num_threads),
        "TOKENIZERS_PARALLELISM": "false",
        # A virtual environment that is not activated is not on the PATH, but its ninja is wanted.
        "PATH": os.pathsep.join(
            (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
        ),
    }
    # Otherwise gloo looks up the host's name, which not every container can resolve, and which may
    # stand for an address that other nodes can't reach.
    interface = interface_towards(spec.master_addr, spec.master_port)
    if interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = interface
        if spec.device == "cuda" and spec.master_addr not in _LOOPBACK:
            environment["NCCL_SOCKET_IFNAME"] = f"={interface}"
    return environment


def interface_towards(address: str, port: int) -> str | None:
    """The network interface from which this machine reaches an address; None if it does not."""
    if address in _LOOPBACK:
        return next((n for _, n in socket.if_nameindex() if n.startswith("lo")), None)
    import psutil

    try:
        # Nothing is sent: connecting a datagram socket only chooses the route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            return name
    return None
