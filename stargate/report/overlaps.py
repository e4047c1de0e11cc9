"""Test tasks and personas that are nearly the same as ones that were trained on.

An evaluation on other data is checked against this run's training data too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stargate.data.similarity import near_duplicates
from stargate.report.records import TRAIN, Evaluation, ReportData


@dataclass(frozen=True, slots=True)
class Overlap:
    """`kind` is "tasks" or "personas"; similarity is Jaccard's, 0 to 1."""

    kind: str
    test_id: str
    train_id: str
    similarity: float


def overlaps(data: ReportData, evaluation: Evaluation) -> tuple[Overlap, ...]:
    """Each such task and persona once, the most similar first. Nothing without training data."""
    train, test = data.texts.get(TRAIN), data.texts.get(evaluation.source)
    if train is None or test is None:
        return ()
    found = _between(
        "tasks",
        {key: task.text for key, task in train.tasks.items()},
        {key: task.text for key, task in test.tasks.items()},
    )
    found += _between(
        "personas",
        {key: persona.text for key, persona in train.personas.items() if persona.text},
        {key: persona.text for key, persona in test.personas.items() if persona.text},
    )
    return tuple(sorted(found, key=lambda overlap: (-overlap.similarity, overlap.test_id)))


def _between(kind: str, train: Mapping[str, str], test: Mapping[str, str]) -> list[Overlap]:
    names = [*train, *test]
    found: list[Overlap] = []
    for index, near in near_duplicates([*train.values(), *test.values()], kind):
        trained = [(similarity, other) for similarity, other in near if other < len(train)]
        if index >= len(train) and trained:
            similarity, other = max(trained)
            found.append(Overlap(kind, names[index], names[other], similarity))
    return found
