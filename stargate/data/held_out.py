"""Which pairs of the train splits a run learns from, and which it holds out to see when to stop."""

from stargate.config.run import RunConfig
from stargate.data.dataset import Dataset
from stargate.errors import DataError
from stargate.types import Pair


def validation_pairs(dataset: Dataset, config: RunConfig) -> list[Pair]:
    """The pairs that are held out. Beyond `data.train` where the split has so many more."""
    if (wanted := config.schedule.validation) is None:
        return []
    pairs = dataset.pairs(config.data.train_splits[-1])
    tasks = list(dict.fromkeys(pair.task.id for pair in pairs))[-wanted.tasks :]
    of_tasks = ([pair for pair in pairs if pair.task.id == task] for task in tasks)
    return [pair for of_task in of_tasks for pair in of_task[-wanted.personas :]]


def training_pairs(dataset: Dataset, config: RunConfig, split: str) -> list[Pair]:
    """The pairs of a train split, without all that have a held-out task or persona.

    Raises DataError if none is left.
    """
    held = validation_pairs(dataset, config)
    tasks, personas = {p.task.id for p in held}, {p.persona.id for p in held}
    pairs = dataset.pairs(split, config.data.train)
    left = [p for p in pairs if p.task.id not in tasks and p.persona.id not in personas]
    if not left:
        raise DataError(
            f"{dataset.name}: schedule.validation holds out {len(tasks)} tasks and {len(personas)} "
            f"personas, so no pair of split {split!r} is left to train on"
        )
    return left
