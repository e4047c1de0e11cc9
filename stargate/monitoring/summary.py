"""What a run came to: summary.json under stable names: what is written in the end, early or not.

stages.<name>.seconds            wall time; stages that run side by side overlap
rollout.{num_dialogues, generated_tokens, generated_tokens_per_s}
train.{loss_first, loss_last, num_examples, ...}   of the last iteration
push.{seconds, phases}                             of the last iteration
eval.m<t>.{gold_logprob, matched_minus_shuffled, question_rate, facts_per_dialogue, ...}
restarts.<role>.{count, longest_s}, resent.<role>  actors that died, requests sent again
repeated_steps                     optimizer steps done again after a death, of all iterations
roleplayer_cost.{calls, prompt_tokens, completion_tokens, money, ...}   of a Roleplayer by API
joined.<role>, left.<role>                         engines added and taken out by `stargate scale`
dropped.<reason>, data_dropped.<reason>, peak_rss_gb, seconds, sittings, status, tracking_lost
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stargate.records.history import RunTotals
from stargate.types import IterationResult

# Of TrainResult, as they are.
_OF_TRAINING = (
    *("validation_loss", "num_examples", "num_validation_examples", "num_tokens"),
    *("num_loss_tokens", "seconds", "model_dir"),
)


def summarise_run(
    counters: RunTotals,
    evaluations: Mapping[str, Mapping[str, Any]],
    iterations: Sequence[IterationResult],
    status: str,
    data_dropped: Mapping[str, int],
) -> dict[str, Any]:
    """The summary as nested plain values. A part that did not happen is absent, never zero."""
    summary: dict[str, Any] = {
        "status": status,
        "seconds": counters.seconds,
        "stages": {name: {"seconds": value} for name, value in counters.stage_seconds.items()},
        "eval": {name: dict(measures) for name, measures in evaluations.items()},
        "dropped": dict(counters.dropped),
        "dropped_examples": counters.dropped_examples,
        "data_dropped": dict(data_dropped),
        "restarts": {
            role: {"count": count, "longest_s": counters.longest_restart[role]}
            for role, count in counters.restarts.items()
        },
        "resent": dict(counters.resent),
        "repeated_steps": sum(one.trained.num_repeated_steps or 0 for one in iterations),
        "joined": dict(counters.joined),
        "left": dict(counters.left),
        "peak_rss_gb": counters.peak_gb,
        "peak_rss_measure": counters.peak_measure,
        "tracking_lost": dict(counters.tracking_lost),
        "sittings": counters.count,
    }
    scopes = [scope for scope in counters.dialogues if not scope.startswith("eval")]
    rollout_seconds = counters.stage_seconds.get("rollout", 0.0)
    if scopes and rollout_seconds:
        tokens = sum(counters.generated_tokens[scope] for scope in scopes)
        summary["rollout"] = {
            "num_dialogues": sum(counters.dialogues[scope] for scope in scopes),
            "generated_tokens": tokens,
            "generated_tokens_per_s": tokens / rollout_seconds,
        }
    if iterations:
        trained, pushed = iterations[-1].trained, iterations[-1].pushed
        summary["train"] = {
            "loss_first": trained.losses[0],
            "loss_last": trained.losses[-1],
            "num_steps": len(trained.losses),
            "tokens_per_s": trained.num_tokens / trained.seconds,
            **{name: getattr(trained, name) for name in _OF_TRAINING},
        }
        summary["push"] = asdict(pushed)
    return summary
