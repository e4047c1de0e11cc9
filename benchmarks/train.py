"""Tokens/s of the trainer on real dialogue lengths, against Hugging Face's Trainer and a bare loop.

Three processes train the same model on the same examples, batch by batch: each makes one optimizer
step while the others wait, in turn. Only steps are compared; what is before and after them is
reported apart. Tokens are those of the examples, padding never counts.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from stargate.benchmarks.card import Measurement, Ratio, Say

if TYPE_CHECKING:
    from stargate.benchmarks.train_sides import Finished, Job, Ready, Side, StepTime, Worker

HELP = "the trainer against Hugging Face's padded Trainer and a bare torch loop"
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
# How far the first step's loss of a side may be from ours: bfloat16 rounds in other places, and
# the Trainer's autocast keeps more of the model in float32.
_SAME_LOSS = 0.03


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument("--model", default="embedded", help="name or folder (default: embedded)")
    parser.add_argument(
        "--target",
        choices=("gold_response", "questions_only"),
        default="gold_response",
        help="what the examples end with: the gold (long and short ones, as in the paper; the "
        "default) or the last question",
    )
    parser.add_argument("--dialogues", type=int, default=64, help="recorded dialogues to use")
    parser.add_argument("--batch-size", type=int, default=8, help="examples per optimizer step")
    parser.add_argument(
        "--micro-batch-size", type=int, default=4, help="as trainer.micro_batch_size"
    )
    parser.add_argument(
        "--row-tokens", type=int, help="as trainer.row_tokens; default: its default"
    )
    parser.add_argument("--no-packing", action="store_true", help="trainer.packing=false for ours")
    parser.add_argument("--steps", type=int, default=6, help="measured optimizer steps")
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps before those")
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--lora", type=int, metavar="RANK", help="train LoRA adapters, on all sides"
    )
    parser.add_argument(
        "--activation-checkpointing", action="store_true", help="on all sides; see peak memory"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of each side; default: all cores")
    parser.add_argument("--trust-remote-code", action="store_true")


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run."""
    from stargate.benchmarks.train_sides import SIDES, Worker
    from stargate.errors import ConfigError

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        job = _make_job(args, folder)
        say(
            f"{job.num_threads} threads on {job.device}, {len(job.examples)} examples, "
            f"{len(job.steps)} steps; starting {', '.join(SIDES)}"
        )
        workers = []
        ready: dict[Side, Ready] = {}
        for side in SIDES:  # one after the other: loading at the same time would be slower
            worker = Worker(side, job)
            stack.callback(worker.close)
            ready[side] = worker.ready()
            say(f"{side}: ready after {ready[side].setup_s:.1f} s")
            workers.append(worker)
        if job.config.packing and not ready["ours"].packed:
            raise ConfigError(f"bench train: {args.model} can't be packed; use --no-packing")
        times = _play(workers, len(job.steps), args.warmup_steps, say)
        finished = {worker.side: worker.finish() for worker in workers}
    _check_same_work(times)
    return summarize(job, args.warmup_steps, times, ready, finished)


def _make_job(args: argparse.Namespace, folder: str) -> "Job":
    from stargate.actors.training.rank import TrainerSpec, make_layout
    from stargate.algorithm.step_plan import plan_steps
    from stargate.benchmarks.train_examples import load_examples
    from stargate.benchmarks.train_sides import Job
    from stargate.resources.machine import gpus, usable_cores
    from stargate.resources.models import resolve_model

    config = _trainer_config(args)
    model_dir = resolve_model(args.model, trust_remote_code=args.trust_remote_code)
    examples = load_examples(model_dir, args.target, args.dialogues, args.trust_remote_code)
    lengths = [len(example.input_ids) for example in examples]
    layout = make_layout(TrainerSpec(str(model_dir), config), packed=config.packing)
    # Full batches only: the Trainer would put the rest of an epoch together with the next one's.
    whole = len(examples) - len(examples) % config.batch_size
    wanted = args.steps + args.warmup_steps
    epochs = -(-wanted // (whole // config.batch_size))
    device: Literal["cpu", "cuda"]
    device = args.device if args.device != "auto" else ("cuda" if gpus() else "cpu")
    return Job(
        model_dir=str(model_dir),
        config=config,
        device=device,
        num_threads=args.threads or usable_cores(),
        examples=examples,
        steps=plan_steps(range(whole), lengths, layout, epochs, seed=0)[:wanted],
        work_dir=folder,
        trust_remote_code=args.trust_remote_code,
    )


def _trainer_config(args: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from stargate.config.files import describe_problem
    from stargate.config.run import LoraConfig, TrainerConfig
    from stargate.errors import ConfigError

    if args.steps < 1 or args.warmup_steps < 1:
        raise ConfigError("--steps and --warmup-steps must be at least 1: first steps are slower")
    if args.dialogues < args.batch_size:
        raise ConfigError(f"--dialogues must be at least --batch-size, got {args.dialogues}")
    try:
        return TrainerConfig(
            batch_size=args.batch_size,
            micro_batch_size=args.micro_batch_size,
            row_tokens=args.row_tokens,
            packing=not args.no_packing,
            zero_stage=args.zero_stage,
            dtype=args.dtype,
            lora=None if args.lora is None else LoraConfig(rank=args.lora, alpha=2 * args.lora),
            activation_checkpointing=args.activation_checkpointing,
            validation_fraction=0.0,
        )
    except ValidationError as error:
        raise ConfigError(f"bench train: {describe_problem(error)}") from error


def _play(
    workers: "Sequence[Worker]", num_steps: int, num_warmup: int, say: Say
) -> "dict[Side, list[StepTime]]":
    """Every step on every side. Who begins changes from step to step."""
    times: dict[Side, list[StepTime]] = {worker.side: [] for worker in workers}
    for number in range(num_steps):
        first = number % len(workers)
        for worker in [*workers[first:], *workers[:first]]:
            times[worker.side].append(worker.step())
        shown = ", ".join(f"{side} {taken[-1].seconds:.2f} s" for side, taken in times.items())
        kind = "warm-up" if number < num_warmup else "step"
        say(f"{kind} {number + 1} of {num_steps}: {shown}")
    return times


def _check_same_work(times: "Mapping[Side, Sequence[StepTime]]") -> None:
    """Before the first update all sides have the same weights, so they have the same loss."""
    from stargate.errors import DataError

    own = times["ours"][0].loss
    for side, taken in times.items():
        if not abs(taken[0].loss - own) <= _SAME_LOSS * own:
            raise DataError(
                f"bench train: the first step's loss is {own:.4f} for ours, {taken[0].loss:.4f} "
                f"for {side}: they don't do the same work"
            )


def summarize(
    job: "Job",
    num_warmup: int,
    times: "Mapping[Side, Sequence[StepTime]]",
    ready: "Mapping[Side, Ready]",
    finished: "Mapping[Side, Finished]",
) -> Measurement:
    """Ratios and figures of the steps after the warm-up."""
    seconds = {side: [t.seconds for t in taken[num_warmup:]] for side, taken in times.items()}
    steps = job.steps[num_warmup:]
    lengths = [len(example.input_ids) for example in job.examples]
    tokens = sum(lengths[i] for step in steps for i in step.examples)

    def ratio(other: "Side") -> float:
        pairs = zip(seconds[other], seconds["ours"], strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    sides: dict[str, Any] = {
        side: {
            "tokens_per_s": tokens / sum(taken),
            "seconds": sum(taken),
            "first_loss": times[side][0].loss,
            "last_loss": times[side][-1].loss,
            "setup_s": ready[side].setup_s,
            **finished[side].closing,
            "peak_memory_gb": finished[side].peak_memory_gb,
        }
        for side, taken in seconds.items()
    }
    return Measurement(
        ratios={
            "vs_padded_trainer": ratio("padded_trainer"),
            "vs_bare_loop": ratio("bare_loop"),
        },
        figures={
            **sides,
            "work": {
                "steps": len(steps),
                "tokens": tokens,
                "loss_tokens": sum(
                    job.examples[i].num_loss_tokens for step in steps for i in step.examples
                ),
                "shortest_example": min(lengths),
                "mean_example": statistics.mean(lengths),
                "longest_example": max(lengths),
                "packed": ready["ours"].packed,
                "forward_passes_per_step": sum(len(s.ranks[0]) for s in steps) / len(steps),
                "threads": job.num_threads,
                "device": job.device,
            },
        },
    )
