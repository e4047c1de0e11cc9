"""`stargate data check`: is this data fit to train and test on?

    Dataset -> lengths + findings (duplicates, splits, golds, tasks) -> QualityReport

How golds are judged is told in quality_golds.py, how near duplicates are found in similarity.py,
which tasks seem to need no question in plain_tasks.py. 25,500 golds take well under a minute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stargate.data.dataset import Dataset
from stargate.data.findings import Cases, Finding, findings_of
from stargate.data.plain_tasks import asks_for_a_fact
from stargate.data.quality_golds import check_golds
from stargate.data.similarity import near_duplicates
from stargate.data.text import STOPWORDS, num_words, same_text_key, words
from stargate.types import Persona, Task

# Golds of a task whose median similarity (Jaccard, content words) reaches this did not depend on
# the person; the authors' highest is 0.30 ("How do I get ahold of my Congressman").
_ALIKE = 0.5


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What a check found."""

    dataset: str
    # split -> {"tasks", "tasks needing a question", "personas", "facts", "pairs", "golds"}
    counts: dict[str, dict[str, int]]
    # "tasks", "personas", "facts", "golds" -> min, p5, median, p95, max, in words
    lengths: dict[str, dict[str, float]]
    findings: list[Finding]

    @property
    def num_errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def limits_exceeded(self) -> bool:
        return any(finding.exceeded for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "counts": self.counts,
            "words": self.lengths,
            "num_errors": self.num_errors,
            "findings": [finding.to_json() for finding in self.findings],
        }


def check_dataset(dataset: Dataset, *, limits: Mapping[str, float] | None = None) -> QualityReport:
    """Runs every check. `limits` maps a kind of finding to the largest count (int) or share (float)
    that is no error.
    """
    counts = split_counts(dataset)
    cases = Cases()
    for dropped in dataset.dropped:
        cases.add("unusable_record", dropped.where, dropped.reason)
    _check_texts(list(dataset.tasks.values()), "task", cases)
    _check_texts(list(dataset.personas.values()), "persona", cases)
    _check_gold_texts(dataset, cases)
    _check_people(dataset, cases)
    _check_pairs(dataset, counts, cases)
    english = _is_english(dataset)
    if not english:
        cases.add("not_english", dataset.name, "plain_task by wording, addressed_to_*, asks_*")
    similar = check_golds(dataset, cases, english=english)
    _check_plain(dataset, similar, cases, english)
    totals = {
        "tasks": len(dataset.tasks),
        "personas": len(dataset.personas),
        "golds": len(dataset.golds),
        "pairs": sum(count["pairs"] for count in counts.values()),
    }
    findings = findings_of(cases, totals, limits or {})
    return QualityReport(dataset.name, counts, _length_table(dataset), findings)


def split_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Per split: tasks, those that need a question, personas, facts, pairs and golds."""
    counts = {}
    for split in dataset.splits:
        needing, plain = dataset.tasks_of(split), dataset.tasks_of(split, needing=False)
        personas = dataset.personas_of(split)
        counts[split] = {
            "tasks": len(needing) + len(plain),
            "tasks needing a question": len(needing),
            "personas": len(personas),
            "facts": sum(len(persona.facts) for persona in personas),
            "pairs": len(dataset.asked(split)),
            "golds": len(dataset.pairs_with_gold(split)),
        }
    return counts


def _length_table(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Words of tasks, personas, facts and golds: how many there are, min, p5, median, p95, max."""
    texts = {
        "tasks": (task.text for task in dataset.tasks.values()),
        "personas": (persona.text for persona in dataset.personas.values()),
        "facts": (fact for persona in dataset.personas.values() for fact in persona.facts),
        "golds": (text for text, _ in dataset.golds.values()),
    }
    table = {}
    for kind, some in texts.items():
        lengths = [num_words(text) for text in some]
        if lengths:
            points = np.percentile(lengths, [0, 5, 50, 95, 100])
            names = ("min", "p5", "median", "p95", "max")
            numbers = {name: float(point) for name, point in zip(names, points, strict=True)}
            table[kind] = {"number": float(len(lengths)), **numbers}
    return table


def _is_english(dataset: Dataset) -> bool:
    """Whether function words of English make up at least a fifth of the texts (English has about
    half; other languages in the same letters a few per cent).
    """
    texts = [text for text, _ in list(dataset.golds.values())[:200]]
    texts += [task.text for task in list(dataset.tasks.values())[:200]]
    found = [word for text in texts for word in words(text)]
    return sum(word in STOPWORDS for word in found) >= 0.2 * max(1, len(found))


def _check_texts(records: Sequence[Task] | Sequence[Persona], kind: str, cases: Cases) -> None:
    """Repeated and nearly repeated tasks or personas, within a split and between splits."""
    first: dict[str, Task | Persona] = {}
    repeated: set[str] = set()
    for record in records:
        other = first.setdefault(same_text_key(record.text), record)
        if other.id != record.id:
            same = other.split == record.split
            found = f"duplicate_{kind}" if same else f"{kind}_in_two_splits"
            cases.add(found, record.id, f"as {other.id}: {record.text[:60]}")
            repeated.add(record.id)
    for index, near in near_duplicates([record.text for record in records], f"{kind}s"):
        record = records[index]
        if record.id in repeated:
            continue
        # One in another split is worse than a nearer one in the same.
        similarity, i = max(near, key=lambda n: (records[n[1]].split != record.split, n))
        other = records[i]
        same = other.split == record.split
        found = f"near_duplicate_{kind}" if same else f"{kind}_nearly_in_two_splits"
        detail = f"{similarity:.2f} like {other.id}: {record.text[:60]} | {other.text[:60]}"
        cases.add(found, record.id, detail)


def _check_gold_texts(dataset: Dataset, cases: Cases) -> None:
    pairs = [f"{task}:{persona}" for task, persona in dataset.golds]
    texts = [text for text, _ in dataset.golds.values()]
    first: dict[str, int] = {}
    repeated = set()
    for index, text in enumerate(texts):
        other = first.setdefault(same_text_key(text), index)
        if other != index:
            repeated.add(index)
            cases.add("duplicate_gold", pairs[index], f"as {pairs[other]}")
    for index, near in near_duplicates(texts, "golds"):
        if index not in repeated:
            similarity, other = max(near)
            cases.add("near_duplicate_gold", pairs[index], f"{similarity:.2f} like {pairs[other]}")


def _check_people(dataset: Dataset, cases: Cases) -> None:
    names: dict[tuple[str, str], str] = {}
    for persona in dataset.personas.values():
        other = names.setdefault((persona.split, persona.name.casefold()), persona.id)
        if other != persona.id:
            cases.add("same_name", persona.id, f"{persona.name}, as {other}")
        if not persona.facts:
            cases.add("no_facts", persona.id)


def _check_pairs(dataset: Dataset, counts: Mapping[str, Mapping[str, int]], cases: Cases) -> None:
    for split, count in sorted(counts.items(), key=lambda item: item[1]["golds"] > 0):
        if count["golds"]:
            for pair_id in dataset.without_gold(split):
                cases.add("pair_without_gold", pair_id)
        elif count["pairs"]:
            detail = f"none of its {count['pairs']} pairs has a gold"
            cases.add("pair_without_gold", f"split {split}", detail, count=count["pairs"])


def _check_plain(
    dataset: Dataset,
    similar: Mapping[str, float],
    cases: Cases,
    english: bool,
) -> None:
    for task in dataset.tasks.values():
        if not task.needs_question:
            continue
        if english and asks_for_a_fact(task.text):
            cases.add("plain_task", task.id, f"asks for a fact: {task.text[:80]}")
        elif similar.get(task.id, 0.0) >= _ALIKE:
            detail = f"its golds are alike ({similar[task.id]:.2f}): {task.text[:80]}"
            cases.add("plain_task", task.id, detail)
