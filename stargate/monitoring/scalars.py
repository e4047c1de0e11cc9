"""The scalars of a run by name and step, for the trackers (tracking.py).

Names, and what their step counts
    train/{loss, grad_norm, learning_rate}  step n: the n-th optimizer step of the run, from 1
    train/engine_gap_{mean, max}            the same, where the trainer compares its log-probs
    train/validation_loss                   step n: the iteration's last optimizer step
    rollout/tokens_per_s                    step v: the iteration that made m_v (its sampled tokens
                                            of dialogues over the wall time of its rollout)
    push/seconds                            step v
    dropped/<reason>                        step v: records dropped in the run so far
    seconds/<stage>                         step v: wall time of rollout, score, respond, train and
                                            push in that iteration; of eval_<stage> for checkpoint
                                            m_v; setup stands with whichever comes first
    eval/<measure>                          step v: checkpoint m_v, named as in metrics.jsonl

Losses and log-probs are in nats. What does not exist (no validation examples, nothing to average)
has no point, never a zero.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stargate.records.counters import Counters
from stargate.types import PushResult, TrainResult

# Groups of scalars (the part of a name before the slash) by what their step counts.
BY_OPTIMIZER_STEP = ("train",)
BY_VERSION = ("rollout", "push", "dropped", "seconds", "eval")


@dataclass(frozen=True, slots=True)
class Point:
    """Scalars of one step."""

    scalars: dict[str, float]
    step: int


class RunScalars:
    """Makes points from what a run did, and remembers what was logged already:

    seconds are those since the last point, optimizer steps go on over iterations.
    """

    def __init__(self, counters: Counters, num_optimizer_steps: int = 0) -> None:
        self._counters = counters
        self._num_optimizer_steps = num_optimizer_steps
        self._seconds_logged: dict[str, float] = {}

    def iteration(self, number: int, trained: TrainResult, pushed: PushResult) -> Iterator[Point]:
        """The points of iteration t = `number`, which made m_{t+1}."""
        last = len(trained.losses)
        per_step = zip(trained.losses, trained.grad_norms, trained.learning_rates, strict=True)
        for step, (loss, grad_norm, learning_rate) in enumerate(per_step, start=1):
            scalars = {
                "train/loss": loss,
                "train/grad_norm": grad_norm,
                "train/learning_rate": learning_rate,
            }
            if trained.engine_gap_mean:
                scalars["train/engine_gap_mean"] = trained.engine_gap_mean[step - 1]
                scalars["train/engine_gap_max"] = trained.engine_gap_max[step - 1]
            if step == last and trained.validation_loss is not None:
                scalars["train/validation_loss"] = trained.validation_loss
            yield Point(scalars, step=self._num_optimizer_steps + step)
        self._num_optimizer_steps += last
        seconds = self._new_seconds()
        scalars = {
            "push/seconds": pushed.seconds,
            **_named("seconds", seconds),
            **_named("dropped", self._counters.dropped),  # of the run so far
        }
        # No tokens: the rollouts were on disk already, so their seconds say nothing about speed.
        tokens = self._counters.generated_tokens[f"t{number}"]
        if tokens and (rollout_seconds := seconds.get("rollout")):
            scalars["rollout/tokens_per_s"] = tokens / rollout_seconds
        yield Point(scalars, step=number + 1)

    def evaluation(self, version: int, measures: Mapping[str, Any]) -> Iterator[Point]:
        """The point of checkpoint m_`version`."""
        seconds = {
            name.replace(f"eval_m{version}.", "eval_"): value
            for name, value in self._new_seconds().items()
        }
        yield Point({**evaluation_scalars(measures), **_named("seconds", seconds)}, step=version)

    def _new_seconds(self) -> dict[str, float]:
        total = self._counters.stage_seconds
        new = {name: value - self._seconds_logged.get(name, 0.0) for name, value in total.items()}
        self._seconds_logged = dict(total)
        return {name: value for name, value in new.items() if value > 0.0}


def evaluation_scalars(measures: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of one checkpoint. Groups become eval/<group>/<measure>, true is 1.

    Measures without a finite number (None: nothing to average) are left out.
    """
    return dict(_numbers("eval", measures))


def _numbers(prefix: str, measures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in measures.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}/{name}", float(value)


def _named(group: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": float(value) for name, value in values.items()}
