"""Test tasks and personas that are nearly the same as ones that were trained on.

An evaluation on other data is checked against this run's training data too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stargate.data.quality import Thresholds
from stargate.data.similarity import features_of, groups_of, jaccard, near_duplicates
from stargate.report.records import TRAIN, Evaluation, ReportData

# With how many training texts of its group a text is compared: a group can have thousands.
_HEADS = 20


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
    limits = Thresholds()
    found = _between(
        "tasks",
        {key: task.text for key, task in train.tasks.items()},
        {key: task.text for key, task in test.tasks.items()},
        limits.tasks,
    )
    found += _between(
        "personas",
        {key: persona.text for key, persona in train.personas.items() if persona.text},
        {key: persona.text for key, persona in test.personas.items() if persona.text},
        limits.personas,
    )
    return tuple(sorted(found, key=lambda overlap: (-overlap.similarity, overlap.test_id)))


def _between(
    kind: str, train: Mapping[str, str], test: Mapping[str, str], threshold: float
) -> list[Overlap]:
    names = [*train, *test]
    features = features_of([*train.values(), *test.values()], kind)
    found: list[Overlap] = []
    for group in groups_of(near_duplicates(features, threshold), len(names)):
        trained = [index for index in group if index < len(train)][:_HEADS]
        for index in group:
            if index < len(train) or not trained:
                continue
            near = [(jaccard(features[other], features[index]), other) for other in trained]
            similarity, other = max(near)
            if similarity >= threshold:
                found.append(Overlap(kind, names[index], names[other], similarity))
    return found
