"""Scores recorded dialogues with our scorer, with vLLM's prompt_logprobs and with a bare pass.

    work:   all four dialogues of each of `--pairs` pairs, three turns each, as a run played them,
            and the starter data set's golds; the requests of a pair are asked for together
    sides:  our scorer and vLLM, once on one core and once as two processes on two cores with half
            of the pairs each (on a GPU: once, on that GPU); a Hugging Face forward pass on one core
    rounds: each side does the whole work once per round, one side after the other; ratios are of
            the sums over the rounds, after a round on one pair that is not counted

Unique tokens are those that remain when what the texts of a pair have in common at their beginning
is counted once: the opening of its dialogues, and a dialogue that several golds follow.

Every log-prob is checked: the mean over a gold may differ by 0.02 nats per token between one core
and two, with one gold and with several, and from a float32 pass of one sequence at a time.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from stargate.benchmarks.results import Measurement, Ratio, Say
from stargate.benchmarks.score_sides import Job, Side, start_side
from stargate.benchmarks.score_work import (
    PairRequests,
    final_only,
    load_work,
    num_tokens,
    num_unique,
    with_golds,
)
from stargate.benchmarks.sides import SideProcess
from stargate.errors import DivergenceError
from stargate.launch.shared import positive
from stargate.resources.gpus import gpus
from stargate.resources.models import resolve_model

# (request, number of the gold) -> its log-probs (G,)
GoldLogprobs = dict[tuple[str, int], tuple[float, ...]]
Sides = Mapping[Side, Sequence[SideProcess]]
# pass -> its work
Passes = Mapping[str, Sequence[PairRequests]]

RATIOS: Mapping[str, Ratio] = {
    "vs_prompt_logprobs": Ratio(
        "tokens per second of our scorer / of vLLM's prompt_logprobs on the same requests, one "
        "gold per dialogue; on one core and on two (one process per core), the smaller ratio",
        4.0,
    ),
    "vs_forward": Ratio(
        "unique tokens per second of our scorer / of a bare Hugging Face forward pass (trunk, and "
        "output layer at gold positions) of the same unique tokens, batches sorted by length (on a "
        "CPU of at most 1,024 tokens, its fastest), same dtype, one core",
        0.85,
    ),
    "golds8_vs_1": Ratio(
        "seconds of our scorer for several golds (8) after each dialogue / for one, one core; "
        "dialogues of about 580 tokens: a pair's four recorded ones joined (figures: as recorded)",
        3.0,
        higher_is_better=False,
    ),
    "turn_scores_vs_final": Ratio(
        "seconds of our scorer for the gold after each of three turns and once before any / for "
        "the gold after the last turn alone, one core; four dialogues of about 580 tokens per pair",
        1.6,
        higher_is_better=False,
    ),
}
# The largest difference that is not an error, in nats per token: the mean over a gold.
_MAX_DIFFERENCE = 0.02
# Pairs whose recorded dialogues meet several golds, and texts that a float32 pass checks.
_MAX_GOLDS_PAIRS = 2
_MAX_TURNS_PAIRS = 4
_NUM_REFERENCES = 4
# The passes of one dialogue and several golds, which vLLM does once more for each gold.
_SEVERAL_GOLDS = ("long_n", "recorded_n")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    add = parser.add_argument
    add("--pairs", type=positive, default=8, metavar="N", help="of four dialogues")
    add("--golds", type=positive, default=8, metavar="N", help="per dialogue")
    add("--rounds", type=positive, default=2, metavar="R", help="how often each side works")
    add("--model", default="embedded", help="as in a config")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")
    add("--max-batch-tokens", type=positive, default=1024, metavar="N", help="of our scorer")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where all sides compute")


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run. Raises DivergenceError where log-probs differ."""
    model_dir = resolve_model(args.model)
    work = load_work(model_dir, args.pairs, args.golds)
    few = work.played[:_MAX_GOLDS_PAIRS]
    passes: Passes = {
        "single": with_golds(work.played, 1),
        "long_1": with_golds(work.long, 1),
        "long_n": work.long,
        "recorded_1": with_golds(few, 1),
        "recorded_n": few,
        "turns_all": work.turns[:_MAX_TURNS_PAIRS],
        "turns_final": final_only(work.turns[:_MAX_TURNS_PAIRS]),
    }
    on_gpu = args.device == "cuda" or (args.device == "auto" and bool(gpus()))
    # Up to two CPU cores that this process may use; None: the GPU.
    cores = [None] if on_gpu else [*sorted(os.sched_getaffinity(0))[: min(2, args.pairs)]]
    results = Results()
    with tempfile.TemporaryDirectory(prefix="stargate-score-") as logs, ExitStack() as stack:

        def start(side: Side, cores: Sequence[int | None]) -> list[SideProcess]:
            """One process per core. They are not waited for."""
            started = []
            for core in cores:
                log_file = str(Path(logs) / f"{side}-{core}.log")
                common = (args.dtype, args.max_batch_tokens, core, log_file)
                job = Job(side, str(model_dir), *common)
                started.append(start_side(job))
                stack.callback(started[-1].close)
            return started

        say("a float32 pass, one sequence at a time")
        sample = [work.played[0][:_NUM_REFERENCES], work.long[0]]
        reference = start("reference", cores[:1])
        reference[0].answer()
        results.run("float32", reference, with_golds(sample, 1))
        reference[0].close()
        say(f"starting vLLM and the scorer, {len(cores)} of each, and the bare pass")
        sides: Sides = {
            "prompt_logprobs": start("prompt_logprobs", cores),
            "scorer": start("scorer", cores),
            "forward": start("forward", cores[:1]),
        }
        for processes in sides.values():
            for process in processes:
                process.answer()
                process.ask(passes["single"][:1])  # warms it up
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            _play_round(sides, passes, results)
    results.check()
    return _measurement(args, passes, results)


@dataclass
class Results:
    """Per pass: seconds, summed over the rounds, and the log-probs of each gold."""

    seconds: dict[str, float] = field(default_factory=dict)
    logprobs: dict[str, GoldLogprobs] = field(default_factory=dict)

    def run(self, name: str, sides: Sequence[SideProcess], work: Sequence[PairRequests]) -> None:
        """Lets the processes do the pass together, each its share of the pairs."""
        shares = [work[number :: len(sides)] for number in range(len(sides))]
        for side, share in zip(sides, shares, strict=True):
            side.send(list(share))
        answers = [side.answer() for side in sides]
        seconds = max(answer.seconds for answer in answers)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        found = self.logprobs.setdefault(name, {})
        for share, answer in zip(shares, answers, strict=True):
            if answer.logprobs:
                asked = [request for requests in share for request in requests]
                golds = [(one.key, number) for one in asked for number in range(len(one.golds))]
                found.update(zip(golds, answer.logprobs, strict=True))

    def differences(self) -> dict[str, float]:
        """The largest differences of a gold's mean log-prob, in nats per token."""
        found = self.logprobs
        one = found["scorer_1"] | found["long_1"]
        compared = {
            "several_golds_from_one": (found["recorded_n"] | found["long_n"], one),
            "scorer_from_float32": (one, found["float32"]),
            "turn_scores_from_final": (found["turns_all"], found["turns_final"]),
            "prompt_logprobs_from_float32": (found["prompt_logprobs_1"], found["float32"]),
        }
        if "scorer_2" in found:
            compared["two_cores_from_one"] = (found["scorer_2"], one)
        return {name: largest_difference(*both) for name, both in compared.items()}

    def check(self) -> None:
        """Raises DivergenceError where the scorer's own log-probs differ by too much."""
        for name, difference in self.differences().items():
            if name != "prompt_logprobs_from_float32" and not difference <= _MAX_DIFFERENCE:
                raise DivergenceError(
                    f"bench score: {name}: a gold's mean log-prob differs by {difference:.4f} nats "
                    f"per token; at most {_MAX_DIFFERENCE} is rounding"
                )


def largest_difference(some: GoldLogprobs, others: GoldLogprobs) -> float:
    """Of the golds that both have: the largest difference of the mean, in nats per token."""
    common = some.keys() & others.keys()
    if not common:
        raise ValueError("no gold is in both")
    gaps = []
    for key in common:
        pairs = zip(some[key], others[key], strict=True)
        gaps.append(abs(sum(one - other for one, other in pairs)) / len(some[key]))
    return max(gaps)


def _play_round(sides: Sides, passes: Passes, results: Results) -> None:
    for side, processes in sides.items():
        results.run(f"{side}_1", processes[:1], passes["single"])
    for side, processes in sides.items():
        if len(processes) > 1:
            results.run(f"{side}_{len(processes)}", processes, passes["single"])
    for name in [name for name in passes if name != "single"]:
        results.run(name, sides["scorer"][:1], passes[name])
    for name in _SEVERAL_GOLDS:
        results.run(f"prompt_logprobs_{name}", sides["prompt_logprobs"][:1], passes[name])


def _measurement(args: argparse.Namespace, passes: Passes, results: Results) -> Measurement:
    took = results.seconds
    asked = num_tokens(passes["single"]) * args.rounds
    unique = {name: num_unique(work) * args.rounds for name, work in passes.items()}
    on_cores = {
        cores: took[f"prompt_logprobs_{cores}"] / took[f"scorer_{cores}"]
        for cores in ("1", "2")
        if f"scorer_{cores}" in took
    }
    ratios = {
        "vs_prompt_logprobs": min(on_cores.values()),
        "vs_forward": took["forward_1"] / took["scorer_1"],
        "golds8_vs_1": took["long_n"] / took["long_1"],
        "turn_scores_vs_final": took["turns_all"] / took["turns_final"],
    }
    figures = {
        "dialogues": sum(map(len, passes["single"])),
        "golds_per_dialogue": args.golds,
        "tokens": asked // args.rounds,
        "unique_tokens": unique["single"] // args.rounds,
        "tokens_per_s": {
            name: asked / took[name]
            for name in ("prompt_logprobs_1", "scorer_1", "prompt_logprobs_2", "scorer_2")
            if name in took
        },
        "unique_tokens_per_s": {
            "scorer_1": unique["single"] / took["scorer_1"],
            "forward_1": unique["single"] / took["forward_1"],
            **{name: unique[name] / took[name] for name in unique if name != "single"},
        },
        "vs_prompt_logprobs_by_cores": on_cores,
        "vs_prompt_logprobs_several_golds": {
            name.removesuffix("_n"): took[f"prompt_logprobs_{name}"] / took[name]
            for name in _SEVERAL_GOLDS
        },
        "several_golds_vs_one": {
            name: {
                "seconds": took[f"{name}_n"] / took[f"{name}_1"],
                "unique_tokens": unique[f"{name}_n"] / unique[f"{name}_1"],
            }
            for name in ("long", "recorded")
        },
        "turn_scores_vs_final_unique_tokens": unique["turns_all"] / unique["turns_final"],
        "largest_differences_nats_per_token": results.differences(),
        "seconds_per_round": {name: seconds / args.rounds for name, seconds in took.items()},
    }
    return Measurement(ratios, figures)
