"""Plays real dialogues as a run does, then the same requests in other orders on the same engines.

Every question and answer of the pipeline is recorded: its prompt, seed and output length. The
replays give the engines exactly these again. All passes begin with empty prefix caches and may
fill them; a replay is submitted inside the engines' own processes, so it pays for no remote call,
no prompt building and no matching of facts. Pipeline and ceiling alternate for `--rounds` rounds,
and sums over the rounds are compared; lock-step runs once, with the requests of the last round.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stargate.benchmarks.results import Measurement, Ratio, Say
from stargate.benchmarks.rollout_figures import (
    QUESTIONER,
    ROLEPLAYER,
    percentile,
    role_figures,
    turn_seconds,
)
from stargate.config.files import load_config
from stargate.errors import ConfigError
from stargate.launch.setup import Prepared, prepare
from stargate.launch.shared import positive
from stargate.launch.system import running_system
from stargate.monitoring.progress import PlainProgress
from stargate.records.counters import Counters
from stargate.rollout.dialogue import plan_dialogues
from stargate.types import DialoguePlan

if TYPE_CHECKING:
    from stargate.benchmarks.rollout_passes import Played, Replayed

RATIOS: Mapping[str, Ratio] = {
    "vs_ceiling": Ratio(
        "turns per second of the pipeline / of the same engines given the same prompts and output "
        "lengths as independent requests, all submitted at once, both roles at the same time",
        0.90,
    ),
    "vs_lockstep": Ratio(
        "seconds of a lock-step loop (all dialogues turn by turn, role by role, engines warm, the "
        "same prompts and output lengths) / seconds of the pipeline",
        1.6,
    ),
    "vs_lockstep_reload": Ratio(
        "seconds of that lock-step loop with the role's engines ended and started anew before each "
        "of its turns, as the authors' code does / seconds of the pipeline",
        4.0,
    ),
}
# Dialogues that are played before anything is measured.
_WARM_UP_DIALOGUES = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    add = parser.add_argument
    add("--dialogues", type=positive, default=192, metavar="N", help="how many to play")
    add("--turns", type=positive, default=3, metavar="K", help="turns of each")
    add("--rounds", type=positive, default=2, metavar="R", help="how often each side works")
    add(
        "--preset",
        default="cpu_learn",
        metavar="CONFIG",
        help="model, prompts, sampling and engines",
    )
    add("--max-new-tokens", type=positive, metavar="N", help="of each text (default: the preset's)")
    add("--skip-reload", action="store_true", help="leave vs_lockstep_reload out: it takes minutes")
    add("overrides", nargs="*", metavar="key=value", help="of the preset, as for stargate run")


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run."""
    own = workload_overrides(args.turns, args.max_new_tokens)
    prepared = prepare(load_config(args.preset, [*own, *args.overrides]), say, training=False)
    plans = _plans(prepared, args.preset, args.dialogues)
    return asyncio.run(_measure(prepared, plans, args.rounds, not args.skip_reload, say))


def workload_overrides(num_turns: int, max_new_tokens: int | None) -> list[str]:
    """A benchmark's options as overrides of its preset."""
    # Both roles' engines write in every turn; with facts, a turn may need no call at all.
    overrides = [f"rollout.turns=[{num_turns}]", "roleplayer.grounding={type: persona}"]
    if max_new_tokens is not None:
        for role in ("questioner", "roleplayer"):
            overrides.append(f"{role}.sampling.max_new_tokens={max_new_tokens}")
    return overrides


def _plans(prepared: Prepared, preset: str, num_dialogues: int) -> list[DialoguePlan]:
    """The first dialogues of a run's first iteration, then of its test pairs.

    N dialogues of a pair follow each other, as in a run. Raises ConfigError if there are too few.
    """
    config = prepared.config
    pairs = [*prepared.train_pairs(0), *prepared.test_pairs.scored]
    planned = plan_dialogues(pairs, "bench", config.seed, config.rollout)
    plans = [plan for of_pair in planned for plan in of_pair]
    if len(plans) < num_dialogues:
        raise ConfigError(
            f"--dialogues {num_dialogues}: {preset} has {len(pairs)} pairs with "
            f"{config.rollout.num_dialogues} dialogues each, {len(plans)} in all"
        )
    return plans[:num_dialogues]


async def _measure(
    prepared: Prepared, plans: Sequence[DialoguePlan], rounds: int, reload: bool, say: Say
) -> Measurement:
    from stargate.benchmarks.rollout_engine import MeasuredEngine
    from stargate.benchmarks.rollout_passes import Stand

    played, ceilings = [], []
    progress = PlainProgress(sys.stderr)
    parts: dict[str, Any] = {"training": False, "scoring": False, "engine_class": MeasuredEngine}
    with TemporaryDirectory(prefix="stargate-bench-") as name:
        logs = Path(name) / "logs"
        logs.mkdir()
        async with running_system(prepared, logs, Counters(), progress, **parts) as running:
            stand = Stand(running, Path(name))
            say("warming up")
            warm = await stand.pipeline(plans[:_WARM_UP_DIALOGUES])
            await stand.ceiling(warm.recorded)
            for number in range(1, rounds + 1):
                played.append(await stand.pipeline(plans))
                say(f"round {number}: pipeline {played[-1].seconds:.1f} s")
                ceilings.append(await stand.ceiling(played[-1].recorded))
                say(f"round {number}: ceiling {ceilings[-1].seconds:.1f} s")
            lock_step = await stand.lock_step(played[-1].recorded)
            say(f"lock-step {lock_step.seconds:.1f} s")
            reloaded = await stand.reload(played[-1].recorded) if reload else None
    return _measurement(played, ceilings, lock_step, reloaded)


def _measurement(
    played: "Sequence[Played]",
    ceilings: "Sequence[Replayed]",
    lock_step: "Replayed",
    reloaded: "Replayed | None",
) -> Measurement:
    last = played[-1]
    latencies = turn_seconds(chain.from_iterable(last.recorded.values()))
    num_calls = sum(record.num_calls for record in last.records.values())
    passes: dict[str, Played | Replayed] = {
        "pipeline": last,
        "ceiling": ceilings[-1],
        "lock_step": lock_step,
    }
    seconds: dict[str, Any] = {
        "pipeline": [one.seconds for one in played],
        "ceiling": [one.seconds for one in ceilings],
        "lock_step": lock_step.seconds,
    }
    ratios = {
        "vs_ceiling": sum(seconds["ceiling"]) / sum(seconds["pipeline"]),
        "vs_lockstep": lock_step.seconds / last.seconds,
    }
    if reloaded is not None:
        ratios["vs_lockstep_reload"] = reloaded.seconds / last.seconds
        seconds["lock_step_reload"] = reloaded.seconds
        seconds["of_which_restarts"] = reloaded.restart_seconds
    figures = {
        "dialogues": len(last.dialogues),
        "dropped": last.num_dropped,
        "turns": last.num_turns,
        "turns_per_s": last.num_turns / last.seconds,
        "turn_p50_s": percentile(latencies, 0.50),
        "turn_p99_s": percentile(latencies, 0.99),
        "remote_calls_per_turn": num_calls / max(1, last.num_turns),
        "driver_cpu_s": last.cpu["driver"],
        **{
            role: role_figures(last.of_role(role), last.seconds)
            for role in (QUESTIONER, ROLEPLAYER)
        },
        "seconds": seconds,
        "work": {name: asdict(one.work) for name, one in passes.items()},
        "cpu_seconds": {name: dict(one.cpu) for name, one in passes.items()},
    }
    return Measurement(ratios, figures)
