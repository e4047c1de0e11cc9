"""The real orchestration on a real Ray cluster, with SIMULATED engines: how far does it scale?

Everything is what `stargate run` uses: the iteration's loop, dialogue workers, engine pools,
callers, prompts, tokenizer, scoring requests, selection, examples, run directory. Only what would
compute is simulated: engines take as long as a measured curve says (--curve) and answer with texts
cut from the starter set, scorer and trainer likewise. No model runs. The simulated engines live in
one process; each is called for itself, as if it stood on a machine of its own.

The curve is played with 1 to 64 engine pairs (a Questioner's and a Roleplayer's engine), each pair
with the same number of dialogues. Then engines that are faster than any show what the orchestrator
itself can do; --dialogues 125000 plays the paper's whole iteration there. All
processes share this machine's cores, also the simulated engines': the card says who used them.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stargate.benchmarks.results import Measurement, Ratio, Say
from stargate.launch.shared import not_negative, positive

if TYPE_CHECKING:
    from stargate.benchmarks.scale_run import Played

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

    def add(name: str, default: int, text: str, least: Callable[[str], int] = positive) -> None:
        parser.add_argument(name, type=least, default=default, metavar="N", help=text)

    parser.add_argument(
        "--pairs",
        type=positive,
        nargs="+",
        default=[1, 4, 16, 64],
        metavar="N",
        help="numbers of engine pairs (default: 1 4 16 64; linear_64 needs 1 and 64)",
    )
    add("--per-pair", 120, "dialogues per engine pair")
    parser.add_argument(
        "--curve",
        choices=("cpu", "fast"),
        default="cpu",
        help="simulated speed of those engines: cpu is measured, fast is of the order of an H100",
    )
    add(
        "--dialogues",
        40_000,
        "dialogues for the orchestrator's own limit (default: %(default)s; the paper's iteration "
        "has 125000)",
    )
    add("--limit-pairs", 16, "engine pairs there")
    add("--workers", 2, "dialogue workers; 0: the driver plays", not_negative)
    add(
        "--max-new-tokens",
        48,
        "of each question and answer; simulated lengths are uniform from half of it to all",
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
    figures = asdict(found)
    cpu_seconds = figures.pop("cpu_seconds")
    del figures["setting"]
    return {
        "engine_pairs": found.setting.num_engine_pairs,
        "curve": f"{found.setting.curve} (simulated)",
        "turns_per_s": found.turns_per_s,
        **figures,
        "cpu_ms_per_turn": {
            name: 1e3 * seconds / found.turns for name, seconds in cpu_seconds.items()
        },
        "cpu_share_of_a_core": {
            name: seconds / found.iteration_seconds for name, seconds in cpu_seconds.items()
        },
    }
