"""Plays real dialogues as a run does, then the same requests in other orders on the same engines.

Every question and answer of the pipeline is recorded: its prompt, seed and output length. The
replays give the engines exactly these again. All passes begin with empty prefix caches and may
fill them; a replay is submitted inside the engines' own processes, so it pays for no remote call,
no prompt building and no matching of facts. Pipeline and ceiling alternate for `--rounds` rounds,
and sums over the rounds are compared; lock-step runs once, with the requests of the last round.
"""

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stargate.benchmarks.card import Measurement, Ratio, Say
from stargate.benchmarks.options import positive

if TYPE_CHECKING:
    from stargate.benchmarks.rollout_passes import Played, Replayed, Stand
    from stargate.benchmarks.workload import Workload

HELP = "dialogues of two engines against their ceiling and against lock-step loops"
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
    parser.add_argument(
        "--dialogues", type=positive, default=192, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--turns", type=positive, default=3, metavar="K", help="turns of each (default: 3)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=2, metavar="R", help="default: %(default)s"
    )
    parser.add_argument(
        "--preset",
        default="cpu_learn",
        metavar="CONFIG",
        help="model, prompts, sampling and engines (default: %(default)s)",
    )
    parser.add_argument(
        "--grounding",
        choices=("persona", "preset"),
        default="persona",
        help="persona: the Roleplayer's engine writes every answer (default); preset: as it says",
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="of each text (default: the preset's)"
    )
    parser.add_argument(
        "--skip-reload", action="store_true", help="leave vs_lockstep_reload out: it takes minutes"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the preset, as for stargate run"
    )


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run."""
    from stargate.benchmarks.workload import make_workload, workload_overrides

    own = workload_overrides(args.grounding, args.turns, args.max_new_tokens)
    workload = make_workload(args.preset, [*own, *args.overrides], args.dialogues, say)
    return asyncio.run(_measure(workload, args.rounds, not args.skip_reload, say))


async def _measure(workload: "Workload", rounds: int, reload: bool, say: Say) -> Measurement:
    async with _stand(workload, say) as stand:
        say("warming up")
        warm = await stand.pipeline(workload.plans[:_WARM_UP_DIALOGUES])
        await stand.ceiling(warm.recorded)
        played: list[Played] = []
        ceilings: list[Replayed] = []
        for number in range(1, rounds + 1):
            played.append(await stand.pipeline(workload.plans))
            say(f"round {number}: pipeline {played[-1].seconds:.1f} s")
            ceilings.append(await stand.ceiling(played[-1].recorded))
            say(f"round {number}: ceiling {ceilings[-1].seconds:.1f} s")
        lock_step = await stand.lock_step(played[-1].recorded)
        say(f"lock-step {lock_step.seconds:.1f} s")
        reloaded = await stand.reload(played[-1].recorded) if reload else None
    return _measurement(played, ceilings, lock_step, reloaded)


@asynccontextmanager
async def _stand(workload: "Workload", say: Say) -> AsyncIterator["Stand"]:
    """Ray, the engines of both roles and what matches facts; all are ended whatever happens."""
    import ray

    from stargate.actors.runtime.spawn import ActorPlan, start_actors, start_ray, stop_actors
    from stargate.benchmarks.rollout_engine import MeasuredEngine
    from stargate.benchmarks.rollout_passes import Stand
    from stargate.launch.setup import fact_matcher, worker_spec

    prepared = workload.prepared
    actor_group = matcher = None
    with tempfile.TemporaryDirectory(prefix="stargate-bench-") as folder:
        try:
            start_ray(prepared.num_gpus)
            matcher = fact_matcher(prepared)
            plan = ActorPlan(
                config=prepared.config,
                placement=prepared.placement,
                base_model_dir=prepared.base_model_dir,
                roleplayer_dir=prepared.roleplayer_dir,
                log_dir=Path(folder),
                training=False,
                scoring=False,
                engine_class=MeasuredEngine,
                worker=worker_spec(prepared),
            )
            say("starting the engines")
            actor_group = await start_actors(plan, say)
            yield Stand(workload, plan, actor_group, matcher)
        finally:
            if actor_group is not None:
                await asyncio.shield(stop_actors(actor_group))
            if matcher is not None:
                matcher.close()
            ray.shutdown()


def _measurement(
    played: Sequence["Played"],
    ceilings: Sequence["Replayed"],
    lock_step: "Replayed",
    reloaded: "Replayed | None",
) -> Measurement:
    seconds = sum(one.seconds for one in played)
    last = played[-1]
    ratios = {
        "vs_ceiling": sum(one.seconds for one in ceilings) / seconds,
        "vs_lockstep": lock_step.seconds / last.seconds,
    }
    figures = _figures(last) | {
        "seconds": {
            "pipeline": [one.seconds for one in played],
            "ceiling": [one.seconds for one in ceilings],
            "lock_step": lock_step.seconds,
        },
        "work": {
            "pipeline": asdict(last.work),
            "ceiling": asdict(ceilings[-1].work),
            "lock_step": asdict(lock_step.work),
        },
        "cpu_seconds": {
            "pipeline": dict(last.cpu),
            "ceiling": dict(ceilings[-1].cpu),
            "lock_step": dict(lock_step.cpu),
        },
    }
    if reloaded is not None:
        ratios["vs_lockstep_reload"] = reloaded.seconds / last.seconds
        figures["seconds"] |= {
            "lock_step_reload": reloaded.seconds,
            "of_which_restarts": reloaded.restart_seconds,
        }
    return Measurement(ratios, figures)


def _figures(played: "Played") -> dict[str, Any]:
    """Figures of one pipeline pass."""
    from stargate.benchmarks.rollout_figures import (
        percentile,
        role_figures,
        step_figures,
        turn_seconds,
    )

    latencies = turn_seconds(one for role in played.recorded for one in played.served(role))
    figures: dict[str, Any] = {
        "dialogues": len(played.dialogues),
        "dropped": played.num_dropped,
        "turns": played.num_turns,
        "turns_per_s": played.num_turns / played.seconds,
        "turn_p50_s": percentile(latencies, 0.50),
        "turn_p99_s": percentile(latencies, 0.99),
        "remote_calls_per_turn": played.num_calls / max(1, played.num_turns),
        "driver_cpu_s": played.cpu["driver"],
    }
    for role, busy in played.busy_shares.items():
        figures[role] = role_figures(played.served(role), played.seconds, busy) | dict(
            step_figures(played.steps[role])
        )
    return figures
