"""The packaged set `asking` asks what it says: what its golds need is not what any questionnaire
brings out."""

import asyncio
from collections import Counter, defaultdict

import pytest

from stargate.config.roleplayer import FactsGrounding
from stargate.data.dataset import Dataset, open_dataset
from stargate.data.quality import check_dataset
from stargate.evaluation.question_lists import (
    AnswerTable,
    answer_table,
    best_list,
    coverage,
    stock_questions,
)
from stargate.resources.models import resolve_embedder
from stargate.rollout.grounding import open_matcher
from stargate.types import Pair

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def asking() -> Dataset:
    return open_dataset("asking")


@pytest.fixture(scope="module")
def table(asking: Dataset) -> AnswerTable:
    """Which fact answers each stock question, by the Roleplayer's own matching."""
    matcher = open_matcher(FactsGrounding(), resolve_embedder())
    assert matcher is not None
    people = list(asking.personas.values())
    try:
        return asyncio.run(answer_table(stock_questions(), people, matcher))
    finally:
        matcher.close()


def test_it_is_complete(asking: Dataset) -> None:
    assert not asking.dropped
    shape = {
        split: (len(asking.tasks_of(split)), len(asking.personas_of(split)))
        for split in asking.splits
    }
    assert shape == {"A": (16, 12), "B": (16, 12), "test": (16, 24)}
    for split in asking.splits:
        assert asking.without_gold(split) == []
        plain = asking.tasks_of(split, needing=False)
        assert len(plain) == 8
        assert all(task.gold for task in plain)
    assert {len(persona.facts) for persona in asking.personas.values()} == {29}
    texts = [text for text, _ in asking.golds.values()]
    texts += [task.gold for task in asking.tasks.values() if task.gold]
    assert len(set(texts)) == 768 + 24
    assert all(60 <= len(text.split()) <= 120 for text in texts)


def test_every_task_needs_facts_of_its_own(asking: Dataset) -> None:
    used = Counter(len(facts) for _, facts in asking.golds.values())
    assert set(used) <= {2, 3, 4}
    report = check_dataset(asking)
    assert {finding.kind for finding in report.findings if finding.level == "error"} == set()


def test_a_constant_list_covers_little_and_a_list_for_the_task_much(
    asking: Dataset, table: AnswerTable
) -> None:
    train = [pair for split in ("A", "B") for pair in asking.pairs(split)]
    test = asking.pairs("test")
    constant = best_list(train, table, 3)
    assert coverage(constant, test, table) <= 0.15
    assert all(3 / len(pair.persona.facts) <= 0.15 for pair in test)  # three told at random
    of_task: dict[str, list[Pair]] = defaultdict(list)
    for pair in test:
        of_task[pair.task.id].append(pair)
    chosen = [coverage(best_list(pairs, table, 3), pairs, table) for pairs in of_task.values()]
    assert sum(chosen) / len(chosen) >= 0.4
