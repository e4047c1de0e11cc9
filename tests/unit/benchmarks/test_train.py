"""The train benchmark without any training: its ratios, its refusals, its recorded dialogues."""

import json

import pytest

from stargate.actors.training.step_plan import Step
from stargate.benchmarks import train
from stargate.benchmarks.train_work import DIALOGUES, Job, StepTime
from stargate.config.run import TrainerConfig
from stargate.data.dataset import open_dataset
from stargate.errors import ConfigError, DataError
from stargate.types import TrainingExample
from tests.unit.benchmarks.test_command import parse


def make_job() -> Job:
    examples = [
        TrainingExample("p0", "d0", (1, 2, 3, 4), (0, 0, 1, 1), ""),
        TrainingExample("p1", "d1", (1, 2), (0, 1), ""),
    ]
    one, both = Step((((0,),),)), Step((((0,), (1,)),))
    return Job("model", TrainerConfig(), "cpu", 2, examples, [both, one, both, both], "folder")


def times(**seconds: list[float]) -> dict[str, list[StepTime]]:
    return {side: [StepTime(s, 2.0) for s in taken] for side, taken in seconds.items()}


def test_ratios_are_medians_over_the_steps_after_the_warm_up() -> None:
    taken = times(
        ours=[9.0, 1.0, 2.0, 2.0],
        padded_trainer=[1.0, 2.0, 3.0, 8.0],  # 2, 1.5 and 4 times ours
        bare_loop=[1.0, 0.9, 1.0, 2.2],  # 0.9, 0.5 and 1.1 times ours
    )
    closing = {side: {"peak_memory_gb": 1.5} for side in taken}
    closing["ours"]["save_s"] = 0.5
    measured = train.summarize(make_job(), 1, taken, dict.fromkeys(taken, 3.0), closing)
    assert measured.ratios == {
        "vs_padded_trainer": pytest.approx(2.0),
        "vs_bare_loop": pytest.approx(0.9),
    }
    assert measured.ratios.keys() == train.RATIOS.keys()
    # Steps two to four have 4, 6 and 6 tokens, in 5 seconds.
    assert measured.figures["ours"]["tokens_per_s"] == pytest.approx(16 / 5)
    assert measured.figures["ours"]["save_s"] == 0.5
    assert measured.figures["padded_trainer"]["tokens_per_s"] == pytest.approx(16 / 13)
    work = measured.figures["work"]
    assert (work["steps"], work["tokens"], work["loss_tokens"]) == (3, 16, 8)
    assert work["forward_passes_per_step"] == pytest.approx(5 / 3)


@pytest.mark.parametrize("loss", [2.1, 1.9, float("nan")])
def test_sides_that_do_other_work_are_found(loss: float) -> None:
    taken = times(ours=[1.0], padded_trainer=[1.0], bare_loop=[1.0])
    train._check_same_work(taken)
    taken["bare_loop"] = [StepTime(1.0, loss)]
    with pytest.raises(DataError, match=r"2\.0000 for ours, .* for bare_loop: they don't do the"):
        train._check_same_work(taken)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--dialogues", "4"), "--dialogues must be at least --batch-size, got 4"),
        (("--batch-size", "6"), "batch_size must be a multiple of .* = 4, got 6"),
        (("--lora", "0"), "rank: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_options_that_can_not_be_measured_are_one_clear_line(
    options: tuple[str, ...], problem: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=problem):
        train._trainer_config(parse("train", *options))


def test_options_reach_the_trainer() -> None:
    config = train._trainer_config(
        parse(
            "train",
            "--lora",
            "8",
            "--activation-checkpointing",
            "--no-packing",
            "--zero-stage",
            "3",
        )
    )
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha) == (8, 16)
    assert config.activation_checkpointing
    assert not config.packing
    assert config.zero_stage == 3


def test_recorded_dialogues_belong_to_pairs_with_a_gold() -> None:
    rows = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()]
    data = open_dataset("starter")
    pairs = [(row["task_id"], row["persona_id"]) for row in rows]
    assert len(set(pairs)) == len(rows) == 64
    assert all(pair in data.golds for pair in pairs)
    assert all(len(row["turns"]) == 3 for row in rows)
    assert all(turn["question"] and turn["answer"] for row in rows for turn in row["turns"])
