"""The real orchestration on a real Ray cluster, with SIMULATED engines: how far does it scale?

Everything is what `stargate run` uses: the iteration's loop, dialogue workers, engine pools,
callers, prompts, tokenizer, scoring requests, selection, examples, run directory. Only what would
compute is simulated: engines take as long as a measured curve says (--curve) and answer with texts
cut from the starter set, scorer and trainer likewise. No model runs. Several simulated engines live
in one process; each is called for itself, as if it stood on a machine of its own.

The curve is played with 1 to 64 engine pairs (a Questioner's and a Roleplayer's engine), each pair
with the same number of dialogues. Then engines that are faster than any show what the orchestrator
itself can do; --dialogues 125000 plays the paper's whole iteration there. All
processes share this machine's cores, also the simulated engines': the card says who used them.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stargate.benchmarks.card import Measurement, Ratio, Say
from stargate.benchmarks.options import not_negative, positive

if TYPE_CHECKING:
    from stargate.benchmarks.scale_run import Played

HELP = "the orchestration with simulated engines: 1 to 64 engine pairs, memory, Ray calls"
RATIOS: Mapping[str, Ratio] = {
    "linear_64": Ratio(
        "turns per second of the rollouts with 64 simulated engine pairs / 64 x that with one "
        "pair, the same dialogues per pair; from the first plan to the last dialogue on disk",
        0.95,
    ),
}
_FEWEST, _MOST = 1, 64
_SIMULATED = "SIMULATED engines, scorer and trainer: latency and batching from a curve, no model"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--pairs",
        type=positive,
        nargs="+",
        default=[1, 4, 16, 64],
        metavar="N",
        help="numbers of engine pairs (default: 1 4 16 64; linear_64 needs 1 and 64)",
    )
    parser.add_argument(
        "--per-pair",
        type=positive,
        default=120,
        metavar="N",
        help="dialogues per engine pair (default: %(default)s)",
    )
    parser.add_argument(
        "--curve",
        choices=("cpu", "fast"),
        default="cpu",
        help="simulated speed of those engines: cpu is measured, fast is of the order of an H100",
    )
    parser.add_argument(
        "--dialogues",
        type=positive,
        default=40_000,
        metavar="N",
        help="dialogues for the orchestrator's own limit (default: %(default)s; "
        "the paper's iteration has 125000)",
    )
    parser.add_argument(
        "--limit-pairs",
        type=positive,
        default=16,
        metavar="N",
        help="engine pairs there (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=not_negative,
        default=2,
        metavar="N",
        help="dialogue workers; 0: the driver plays (default: %(default)s)",
    )
    parser.add_argument(
        "--hosts",
        type=positive,
        default=1,
        metavar="N",
        help="processes that the simulated engines share (default: %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=48,
        metavar="N",
        help="of each question and answer; simulated lengths are uniform from half of it to all "
        "(default: %(default)s)",
    )


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Measures everything in this run."""
    from stargate.benchmarks.scale_engines import CURVES
    from stargate.benchmarks.scale_run import Setting, play_settings

    def setting(num_pairs: int, num_dialogues: int, curve: str) -> Setting:
        return Setting(
            num_engine_pairs=num_pairs,
            num_dialogues=num_dialogues,
            curve=curve,
            num_workers=args.workers,
            num_hosts=args.hosts,
            max_new_tokens=args.max_new_tokens,
        )

    say(_SIMULATED)
    curve = [setting(n, n * args.per_pair, args.curve) for n in args.pairs]
    beyond = setting(args.limit_pairs, args.dialogues, "limit")
    *played, limit = play_settings([*curve, beyond], say)
    rates = {found.setting.num_engine_pairs: found.turns_per_s for found in played}
    ratios = {}
    if {_FEWEST, _MOST} <= rates.keys():
        ratios["linear_64"] = rates[_MOST] / (_MOST * rates[_FEWEST])
    figures: dict[str, Any] = {
        "simulated": _SIMULATED,
        "turns_per_s": limit.turns_per_s,
        "driver_rss_gb": max(found.driver_rss_gb for found in (*played, limit)),
        "ray_calls_per_turn": limit.ray_calls_per_turn,
        "orchestrator_limit": _describe(limit),
    }
    for found in played:
        figures[f"pairs_{found.setting.num_engine_pairs}"] = _describe(found)
    figures["curves"] = {name: CURVES[name].source for name in (args.curve, "limit")}
    return Measurement(ratios, figures)


def _describe(found: "Played") -> dict[str, Any]:
    return {
        "engine_pairs": found.setting.num_engine_pairs,
        "curve": f"{found.setting.curve} (simulated)",
        "dialogues": found.num_dialogues,
        "turns": found.num_turns,
        "seconds": found.seconds,
        "turns_per_s": found.turns_per_s,
        "iteration_seconds": found.iteration_seconds,
        "ray_calls_per_turn": found.ray_calls_per_turn,
        "rows_per_file": found.rows_per_file,
        "engine_busy_share": found.engine_busy_share,
        "mean_requests_running": found.mean_running,
        "driver_rss_gb": found.driver_rss_gb,
        "worker_rss_gb": found.worker_rss_gb,
        "cpu_ms_per_turn": {
            name: 1e3 * seconds / found.num_turns for name, seconds in found.cpu_seconds.items()
        },
        "cpu_share_of_a_core": {
            name: seconds / found.iteration_seconds for name, seconds in found.cpu_seconds.items()
        },
    }
