"""Tokens/s of the trainer on real dialogue lengths, against Hugging Face's Trainer and a bare loop.

Three processes train the same model on the same examples, batch by batch: each makes one optimizer
step while the others wait, in turn. Only steps are compared; what is before and after them is
reported apart. Tokens are those of the examples, padding never counts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from stargate.actors.training.spec import TrainerSpec, make_layout
from stargate.actors.training.step_plan import plan_steps
from stargate.benchmarks.results import Measurement, Ratio, Say
from stargate.benchmarks.sides import SideProcess, in_turn
from stargate.benchmarks.train_work import Job, StepTime, load_examples
from stargate.config.files import describe_problem
from stargate.config.run import LoraConfig, TrainerConfig
from stargate.errors import ConfigError, DataError
from stargate.launch.shared import positive
from stargate.resources.gpus import gpus
from stargate.resources.machine import usable_cores
from stargate.resources.models import resolve_model

RATIOS: Mapping[str, Ratio] = {
    "vs_padded_trainer": Ratio(
        "tokens/s of our trainer rank (DeepSpeed, as in a run: rows of up to micro_batch_size x "
        "max_length tokens) / tokens/s of transformers.Trainer with its padding collator: same "
        "examples in every step, micro_batch_size of them per forward pass, fused AdamW, bfloat16 "
        "as autocast over float32 weights; median over the steps",
        goal=1.5,
    ),
    "vs_bare_loop": Ratio(
        "tokens/s of our trainer rank / tokens/s of forward, backward and fused AdamW in plain "
        "torch on the very micro-batches and model of ours, in the same precision (float32 "
        "masters and gradient sums); median over the steps",
        goal=0.95,
    ),
}
# side -> its place; each is a process of its own.
SIDES = {
    "ours": "stargate.benchmarks.train_loops:play_ours",
    "padded_trainer": "stargate.benchmarks.train_padded:play",
    "bare_loop": "stargate.benchmarks.train_loops:play_bare",
}
# How far the first step's loss of a side may be from ours: bfloat16 rounds in other places, and
# the Trainer's autocast keeps more of the model in float32.
_SAME_LOSS = 0.03


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    add = parser.add_argument
    add("--model", default="embedded", help="name or folder")
    add("--dialogues", type=int, default=64, help="recorded dialogues to use")
    add("--batch-size", type=int, default=8, help="examples per optimizer step")
    add("--micro-batch-size", type=int, default=4, help="as trainer.micro_batch_size")
    add("--no-packing", action="store_true", help="trainer.packing=false for ours")
    add("--steps", type=positive, default=6, help="measured optimizer steps")
    add("--warmup-steps", type=positive, default=2, help="steps before those: they are slower")
    add("--zero-stage", type=int, choices=(0, 1, 2, 3), default=2, help="of our side")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")
    add("--lora", type=int, metavar="RANK", help="train LoRA adapters, on all sides")
    add("--activation-checkpointing", action="store_true", help="on all sides; see peak memory")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where all sides compute")
    add("--threads", type=int, help="CPU threads of each side; default: all cores")


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        job = _make_job(args, folder)
        say(
            f"{job.num_threads} threads on {job.device}, {len(job.examples)} examples, "
            f"{len(job.steps)} steps; starting {', '.join(SIDES)}"
        )
        environment = {"OMP_NUM_THREADS": str(job.num_threads), "TOKENIZERS_PARALLELISM": "false"}
        sides: dict[str, SideProcess] = {}
        setup: dict[str, float] = {}
        for name, play in SIDES.items():  # one by one: loading at the same time would be slower
            started = time.perf_counter()
            log_file = str(Path(folder) / f"{name}.log")
            side = SideProcess(f"bench train: {name}", play, job, log_file, environment)
            stack.callback(side.close)
            packed = side.answer()
            if name == "ours" and job.config.packing and not packed:
                raise ConfigError(f"bench train: {args.model} can't be packed; use --no-packing")
            sides[name], setup[name] = side, time.perf_counter() - started
            say(f"{name}: ready after {setup[name]:.1f} s")
        times: dict[str, list[StepTime]] = {name: [] for name in SIDES}
        for number, name in in_turn(list(SIDES), len(job.steps)):
            times[name].append(sides[name].ask("step"))
            if all(len(taken) > number for taken in times.values()):
                shown = ", ".join(f"{n} {taken[-1].seconds:.2f} s" for n, taken in times.items())
                kind = "warm-up" if number < args.warmup_steps else "step"
                say(f"{kind} {number + 1} of {len(job.steps)}: {shown}")
        closing = {name: side.ask("finish") for name, side in sides.items()}
    _check_same_work(times)
    return summarize(job, args.warmup_steps, times, setup, closing)


def _make_job(args: argparse.Namespace, folder: str) -> Job:
    config = _trainer_config(args)
    model_dir = resolve_model(args.model)
    examples = load_examples(model_dir, args.dialogues)
    lengths = [len(example.input_ids) for example in examples]
    layout = make_layout(TrainerSpec(str(model_dir), config), packed=config.packing)
    # Full batches only: the Trainer would put the rest of an epoch together with the next one's.
    whole = len(examples) - len(examples) % config.batch_size
    wanted = args.steps + args.warmup_steps
    epochs = -(-wanted // (whole // config.batch_size))
    device: Literal["cpu", "cuda"] = "cuda" if gpus() else "cpu"
    return Job(
        model_dir=str(model_dir),
        config=config,
        device=device if args.device == "auto" else args.device,
        num_threads=args.threads or usable_cores(),
        examples=examples,
        steps=plan_steps(range(whole), lengths, layout, epochs, seed=0)[:wanted],
        work_dir=folder,
    )


def _trainer_config(args: argparse.Namespace) -> TrainerConfig:
    if args.dialogues < args.batch_size:
        raise ConfigError(f"--dialogues must be at least --batch-size, got {args.dialogues}")
    try:
        return TrainerConfig(
            batch_size=args.batch_size,
            micro_batch_size=args.micro_batch_size,
            packing=not args.no_packing,
            zero_stage=args.zero_stage,
            dtype=args.dtype,
            lora=None if args.lora is None else LoraConfig(rank=args.lora, alpha=2 * args.lora),
            activation_checkpointing=args.activation_checkpointing,
            validation_fraction=0.0,
        )
    except ValidationError as error:
        raise ConfigError(f"bench train: {describe_problem(error)}") from error


def _check_same_work(times: Mapping[str, Sequence[StepTime]]) -> None:
    """Before the first update all sides have the same weights, so they have the same loss."""
    own = times["ours"][0].loss
    for side, taken in times.items():
        if not abs(taken[0].loss - own) <= _SAME_LOSS * own:
            raise DataError(
                f"bench train: the first step's loss is {own:.4f} for ours, {taken[0].loss:.4f} "
                f"for {side}: they don't do the same work"
            )


def summarize(
    job: Job,
    num_warmup: int,
    times: Mapping[str, Sequence[StepTime]],
    setup: Mapping[str, float],
    closing: Mapping[str, Mapping[str, float]],
) -> Measurement:
    """Ratios and figures of the steps after the warm-up.

    By side: seconds until it was ready, and what it said at its end: seconds by phase, memory.
    """
    seconds = {side: [t.seconds for t in taken[num_warmup:]] for side, taken in times.items()}
    steps = job.steps[num_warmup:]
    lengths = [len(example.input_ids) for example in job.examples]
    tokens = sum(lengths[i] for step in steps for i in step.examples)

    def ratio(other: str) -> float:
        pairs = zip(seconds[other], seconds["ours"], strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    sides: dict[str, Any] = {
        side: {
            "tokens_per_s": tokens / sum(taken),
            "seconds": sum(taken),
            "first_loss": times[side][0].loss,
            "last_loss": times[side][-1].loss,
            "setup_s": setup[side],
            **closing[side],
        }
        for side, taken in seconds.items()
    }
    work = {
        "steps": len(steps),
        "tokens": tokens,
        "loss_tokens": sum(map(job.num_loss_tokens, steps)),
        "shortest_example": min(lengths),
        "mean_example": statistics.mean(lengths),
        "longest_example": max(lengths),
        "packed": job.config.packing,
        "forward_passes_per_step": sum(len(s.ranks[0]) for s in steps) / len(steps),
        "threads": job.num_threads,
        "device": job.device,
    }
    ratios = {f"vs_{side}": ratio(side) for side in ("padded_trainer", "bare_loop")}
    return Measurement(ratios, {**sides, "work": work})
