"""Which scalars a run gives to its trackers, and at which steps."""

from dataclasses import replace

from stargate.errors import RecordDropped
from stargate.monitoring.scalars import Point, RunScalars, evaluation_scalars
from stargate.records.counters import Counters
from stargate.types import PushResult, TrainResult


def trained(losses: tuple[float, ...], validation_loss: float | None) -> TrainResult:
    return TrainResult(
        losses=losses,
        grad_norms=tuple(loss / 2 for loss in losses),
        learning_rates=tuple(1e-5 for _ in losses),
        validation_loss=validation_loss,
        num_examples=8,
        num_tokens=100,
        num_loss_tokens=50,
        seconds=3.0,
        model_dir="m",
    )


def pushed(version: int, seconds: float) -> PushResult:
    return PushResult(version, num_engines=1, seconds=seconds, phases={"load": seconds})


def step_point(step: int, loss: float, grad_norm: float, **others: float) -> Point:
    values = {"train/loss": loss, "train/grad_norm": grad_norm, "train/learning_rate": 1e-5}
    return Point(values | others, step)


def test_the_scalars_of_a_run() -> None:
    counters = Counters()
    scalars = RunScalars(counters)
    counters.stage_seconds.update({"setup": 9.0, "eval_m0.rollout": 4.0, "eval_m0.score": 2.0})
    first = list(scalars.evaluation(0, {"gold_logprob": -43.5, "gold_logprob_n": 8}))

    counters.stage_seconds.update({"rollout": 10.0, "score": 5.0, "train": 3.0})
    counters.generated_tokens["t0"] = 200
    counters.drop(RecordDropped("too_long", "a:b", "x"))
    second = list(scalars.iteration(0, trained((4.0, 2.0), 1.5), pushed(1, 0.25)))

    counters.stage_seconds.update({"rollout": 18.0, "score": 5.0, "train": 7.0})
    counters.generated_tokens["t1"] = 400
    counters.drop(RecordDropped("too_long", "a:c", "x"))
    third = list(scalars.iteration(1, trained((1.0,), None), pushed(2, 0.5)))

    assert first == [
        Point(
            {
                "eval/gold_logprob": -43.5,
                "eval/gold_logprob_n": 8.0,
                "seconds/setup": 9.0,
                "seconds/eval_rollout": 4.0,
                "seconds/eval_score": 2.0,
            },
            step=0,
        )
    ]
    assert second == [
        step_point(1, 4.0, 2.0),
        step_point(2, 2.0, 1.0, **{"train/validation_loss": 1.5}),
        Point(
            {
                "push/seconds": 0.25,
                "rollout/tokens_per_s": 20.0,
                "seconds/rollout": 10.0,
                "seconds/score": 5.0,
                "seconds/train": 3.0,
                "dropped/too_long": 1.0,
            },
            step=1,
        ),
    ]
    assert third == [
        step_point(3, 1.0, 0.5),
        Point(
            {
                "push/seconds": 0.5,
                "rollout/tokens_per_s": 50.0,
                "seconds/rollout": 8.0,
                "seconds/train": 4.0,
                "dropped/too_long": 2.0,
            },
            step=2,
        ),
    ]


def test_the_engines_gap_is_a_metric_of_every_step() -> None:
    compared = replace(
        trained((4.0, 2.0), None), engine_gap_mean=(0.25, 0.5), engine_gap_max=(1.0, 2.0)
    )
    first, second, _ = RunScalars(Counters()).iteration(0, compared, pushed(1, 0.25))
    gaps = {"train/engine_gap_mean": 0.25, "train/engine_gap_max": 1.0}
    assert first == step_point(1, 4.0, 2.0, **gaps)
    gaps = {"train/engine_gap_mean": 0.5, "train/engine_gap_max": 2.0}
    assert second == step_point(2, 2.0, 1.0, **gaps)


def test_measures_without_a_number_have_no_point() -> None:
    measures = {
        "gold_logprob": -43.5,
        "shuffled": None,
        "question_rate": float("nan"),
        "win_rate": {"mean": 0.5, "ci_low": None},
        "judge": {"fit": False, "model": "m"},
        "n": 0,
    }
    assert evaluation_scalars(measures) == {
        "eval/gold_logprob": -43.5,
        "eval/win_rate/mean": 0.5,
        "eval/judge/fit": 0.0,
        "eval/n": 0.0,
    }
