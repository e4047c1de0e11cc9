"""Which pairs are held out, and when they stop a training."""

import pytest

from stargate.config.run import RunConfig
from stargate.data.dataset import Dataset
from stargate.data.held_out import training_pairs, validation_pairs
from stargate.errors import DataError
from stargate.evaluation.validation import judge
from stargate.types import Persona, Task


def dataset() -> Dataset:
    """Splits A and B of 5 tasks and 5 personas each."""
    made = Dataset("made")
    for split in "AB":
        for n in range(5):
            made.tasks[f"{split}{n}"] = Task(f"{split}{n}", "t", split)
            made.personas[f"{split}p{n}"] = Persona(f"{split}p{n}", "P", "profile", split)
        for task in range(5):
            made.golds |= {(f"{split}{task}", f"{split}p{p}"): ("g", ()) for p in range(5)}
    return made


def config(**data: object) -> RunConfig:
    return RunConfig.model_validate(
        {"data": data, "schedule": {"validation": {"tasks": 2, "personas": 3}}}
    )


def test_nothing_of_the_held_out_pairs_is_trained_on() -> None:
    held = [pair.id for pair in validation_pairs(dataset(), config())]
    assert held == [f"B{t}:Bp{p}" for t in (3, 4) for p in (2, 3, 4)]
    of_b = [pair.id for pair in training_pairs(dataset(), config(), "B")]
    assert of_b == [f"B{t}:Bp{p}" for t in (0, 1, 2) for p in (0, 1)]
    assert len(training_pairs(dataset(), config(), "A")) == 25
    # A smaller training keeps what it has: the split has others to hold out.
    small = config(train={"tasks": 3, "personas": 2})
    assert [pair.id for pair in training_pairs(dataset(), small, "B")] == of_b
    assert [pair.id for pair in validation_pairs(dataset(), small)] == held
    assert validation_pairs(dataset(), RunConfig()) == []
    assert len(training_pairs(dataset(), RunConfig(), "B")) == 25


def test_a_split_that_is_held_out_whole_is_refused() -> None:
    greedy = RunConfig.model_validate({"schedule": {"validation": {"tasks": 5}}})
    with pytest.raises(DataError, match=r"no pair of split 'B' is left to train on"):
        training_pairs(dataset(), greedy, "B")


def test_training_goes_on_while_the_contrast_rises_and_questions_differ() -> None:
    def measured(*of: tuple[float | None, float | None]) -> dict[str, object]:
        return {
            f"m{n}": {"contrast": {"mean": c}, "distinct_question_rate": {"mean": d}}
            for n, (c, d) in enumerate(of)
        }

    rising = measured((1.0, 0.4), (1.5, 0.8), (1.4, None), (3.0, 0.5))
    found = [judge(rising, version, 0.7) for version in range(4)]
    assert [one.best for one in found] == [0, 1, 1, 1]
    assert [one.stop for one in found] == [
        None,  # m_0 may repeat itself: it is what there is
        None,
        "its contrast is not above m1's 1.50 nats",
        "fewer than 70% of its questions differ",
    ]
    assert str(found[2]) == (
        "m2 on held-out pairs: contrast 1.40 nats; best so far m1; training stops: its contrast is "
        "not above m1's 1.50 nats"
    )
    assert judge(measured((1.0, 0.9), (1.0, 0.9)), 1, 0.7).best == 0  # a tie is no rise
    with pytest.raises(DataError, match="m1 has no contrast"):
        judge(measured((1.0, 0.9), (None, 0.9)), 1, 0.7)
