"""One whole iteration, streamed, against the same work with the stages one after the other.

    actors kept warm:  [stages in turn | streamed] x rounds, the order turning each round
                     last round of each: train on its examples, push the weights
    before each:     m_0 is pushed again, so that no run finds the other's prefix cache

Both play the same pairs with the same seeds through the loop's own code (stargate/pair_steps.py);
they differ in `overlap` only. Texts of a batch depend on what else is in it, a few tokens in a
thousand, so the figures say how much work each side had and how many selections were the same.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from stargate.benchmarks.results import Measurement, Ratio, Say
from stargate.benchmarks.sides import in_turn
from stargate.config.files import load_config
from stargate.launch.setup import Prepared, prepare
from stargate.launch.shared import positive
from stargate.launch.system import RunningSystem, running_system
from stargate.monitoring.progress import PlainProgress
from stargate.pair_steps import play_pairs
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.training_loop import run_iteration

RATIOS: Mapping[str, Ratio] = {
    "vs_sequential": Ratio(
        "numerator: seconds of rollouts, scoring, selection and responses when each stage waits "
        "for the end of the one before it; denominator: the same pairs, seeds and actors streamed, "
        "each pair going on by itself; medians of the rounds. Training and the weight push are "
        "alike on both sides: with them the ratio is figures.whole_iteration",
        goal=1.2,
    )
}
SEQUENTIAL, STREAMED = "sequential", "streamed"
_SCOPE = "t0"
_STAGES = ("rollout", "score", "respond")  # of pair_steps.py
_WARM_PAIRS = 2
# The first version that m_0 is pushed under again; below it are those that training makes.
_FIRST_VERSION = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    add = parser.add_argument
    add("--config", default="cpu_demo", help="config to play")
    add("--tasks", type=int, default=4, help="tasks of the split")
    add("--personas", type=int, default=4, help="personas of it")
    add("--rounds", type=positive, default=2, help="runs of each side")
    add("--no-train", action="store_true", help="leave training and push out")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, e.g. rollout.num_dialogues=8",
    )


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run."""
    chosen = [
        f"data.train={{tasks: {args.tasks}, personas: {args.personas}}}",
        "schedule.num_iterations=1",
        "evaluation.enabled=false",
        *args.set,
    ]
    prepared = prepare(load_config(args.config, chosen), say)
    return asyncio.run(_measure(prepared, args.rounds, not args.no_train, say))


class Timeline(Counters):
    """Counters that also know for how long every two stages ran at the same time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._either = Counters()  # of every two stages, by both names

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with ExitStack() as stages:
            stages.enter_context(super().stage(name))
            for two in combinations(_STAGES, 2):
                if name in two:
                    stages.enter_context(self._either.stage("+".join(two)))
            yield

    def stages(self) -> dict[str, float]:
        """Wall time of each stage, whichever pair it ran for."""
        return {name: self.stage_seconds.get(name, 0.0) for name in _STAGES}

    def shared_seconds(self) -> dict[str, float]:
        """For every two stages, by "one+other": the seconds at which both ran."""
        alone, either = self.stages(), self._either.stage_seconds
        return {
            f"{one}+{other}": max(
                0.0, alone[one] + alone[other] - either.get(f"{one}+{other}", 0.0)
            )
            for one, other in combinations(_STAGES, 2)
        }


def idle_shares(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Of each name whose busy seconds grew from `before` to `after`: the idle share of the time."""
    return {name: max(0.0, 1.0 - (after[name] - before[name]) / seconds) for name in before}


@dataclass(frozen=True)
class Played:
    """One side's run: what it took, what was idle, what came out."""

    side: str
    seconds: float  # rollouts to examples
    timeline: Timeline
    idle: dict[str, float]  # share of `seconds` by actor and by core
    selections: dict[str, str]  # pair -> dialogue
    examples: dict[str, tuple[int, ...]]  # pair -> token ids

    @property
    def train_seconds(self) -> float:
        return self.timeline.stage_seconds.get("train", 0.0)

    @property
    def push_seconds(self) -> float:
        return self.timeline.stage_seconds.get("push", 0.0)


async def _measure(prepared: Prepared, rounds: int, train: bool, say: Say) -> Measurement:
    setup = Counters()
    with TemporaryDirectory(prefix="stargate-bench-") as folder:
        logs = Path(folder) / "logs"
        logs.mkdir()
        async with running_system(
            prepared, logs, setup, PlainProgress(sys.stderr), train
        ) as running:
            bench = _Bench(running, Path(folder))
            say("warming up")
            await bench.play("warm", _WARM_PAIRS)
            played = []
            for number, side in in_turn((SEQUENTIAL, STREAMED), rounds):
                one = await bench.play(side, None, train and number == rounds - 1)
                say(f"{side}: {one.seconds:.1f} s")
                played.append(one)
    figures = {
        "pairs": len(prepared.train_pairs(0)),
        "dialogues_per_pair": prepared.config.rollout.num_dialogues,
        "preset_overlaps": prepared.placement.overlap,
        "preset_reason": prepared.placement.overlap_reason,
        "setup_s": setup.stage_seconds["setup"],
    }
    return summarise(played, figures)


def summarise(played: Sequence[Played], figures: Mapping[str, Any]) -> Measurement:
    """The ratio and all figures. Runs of both sides, at least one of each."""
    sides = {side: [one for one in played if one.side == side] for side in (SEQUENTIAL, STREAMED)}
    seconds = {side: statistics.median(one.seconds for one in ones) for side, ones in sides.items()}
    ends = {side: ones[-1].train_seconds + ones[-1].push_seconds for side, ones in sides.items()}
    first, last = sides[SEQUENTIAL][-1], sides[STREAMED][-1]
    trained = {
        "whole_iteration": (seconds[SEQUENTIAL] + ends[SEQUENTIAL])
        / (seconds[STREAMED] + ends[STREAMED])
    }
    return Measurement(
        {"vs_sequential": seconds[SEQUENTIAL] / seconds[STREAMED]},
        {
            **figures,
            **(trained if all(ends.values()) else {}),
            "same_selections": same_share(first.selections, last.selections),
            "same_examples": same_share(first.examples, last.examples),
            **{side: _describe(ones) for side, ones in sides.items()},
        },
    )


def same_share(ones: Mapping[str, Any], others: Mapping[str, Any]) -> float:
    """Of all that either has: the share that is equal in both."""
    names = ones.keys() | others.keys()
    same = sum(name in ones and name in others and ones[name] == others[name] for name in names)
    return same / len(names) if names else 1.0


def _describe(ones: Sequence[Played]) -> dict[str, Any]:
    """One side: all its times, and the rest of its last run."""
    last = ones[-1]
    return {
        "seconds": [one.seconds for one in ones],
        "stage_s": last.timeline.stages(),
        "at_the_same_time_s": last.timeline.shared_seconds(),
        "idle_share": last.idle,
        "train_s": last.train_seconds,
        "push_s": last.push_seconds,
        "dialogues": sum(last.timeline.dialogues.values()),
        "generated_tokens": sum(last.timeline.generated_tokens.values()),
        "examples": len(last.examples),
        "dropped": sum(last.timeline.dropped.values()),
    }


class _Bench:
    """Plays the pairs, each time into a run directory of its own."""

    def __init__(self, running: RunningSystem, folder: Path) -> None:
        self._running = running
        self._folder = folder
        self._number = 0

    async def play(self, side: str, num_pairs: int | None, train: bool = False) -> Played:
        """Rollouts to examples; with `train` also what follows, timed by itself."""
        prepared = self._running.prepared
        pairs = prepared.train_pairs(0)[:num_pairs]
        store, timeline = RunStore(self._folder / f"{self._number}-{side}"), Timeline()
        roles, bench = self._running.open(prepared.config, store, timeline)
        bench = replace(bench, overlap=side == STREAMED)
        await roles.push(str(prepared.base_model_dir), _FIRST_VERSION + self._number)
        self._number += 1
        busy = await self._busy_seconds()
        started = time.perf_counter()
        await play_pairs(_SCOPE, pairs, roles, bench)
        seconds = time.perf_counter() - started
        idle = idle_shares(busy, await self._busy_seconds(), seconds)
        if train:
            # What is on disk is not made again: this trains on it and pushes.
            await run_iteration(0, pairs, roles, bench)
        return Played(
            side=side,
            seconds=seconds,
            timeline=timeline,
            idle=idle,
            selections={
                row["pair_id"]: row["dialogue_id"] for row in store.read(_SCOPE, "selections")
            },
            examples={
                row["pair_id"]: tuple(row["input_ids"]) for row in store.read(_SCOPE, "examples")
            },
        )

    async def _busy_seconds(self) -> dict[str, float]:
        """Of each actor since its start, and of each of our cores since the machine's."""
        from stargate.actors.rpc.remote import remote  # with ray, which help does without

        places = self._running.actor_group.places
        actors = {
            f"{role}-{number}": actor
            for role in ("questioner", "roleplayer", "scorer")
            for number, actor in enumerate(places[role])
        }
        stats = await asyncio.gather(*(remote(actor.stats.remote()) for actor in actors.values()))
        busy = {name: one.busy_seconds for name, one in zip(actors, stats, strict=True)}
        cores = psutil.cpu_times(percpu=True)
        for core in sorted(os.sched_getaffinity(0)):
            used = cores[core]
            busy[f"core-{core}"] = used.user + used.nice + used.system + used.irq + used.softirq
        return busy
