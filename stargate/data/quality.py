"""`stargate data check`: is this data fit to train and test on?

    Dataset -> lengths + findings (duplicates, splits, golds, tasks) -> QualityReport

How golds are judged is told in quality_golds.py, how near duplicates are found in similarity.py,
which tasks seem to need no question in plain_tasks.py. 25,500 golds take well under a minute.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stargate.data.dataset import Dataset
from stargate.data.findings import Finding, Findings
from stargate.data.plain_tasks import asks_for_a_fact
from stargate.data.quality_golds import check_golds
from stargate.data.similarity import features_of, groups_of, jaccard, near_duplicates
from stargate.data.text import STOPWORDS, num_words, same_text_key, words
from stargate.types import Persona, Task

# With how many of the first and last earlier members of its group a text is compared.
_HEADS = 20


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which similarity on two texts count as nearly the same (Jaccard, 0 to 1).

    Tasks are compared by content words, personas and golds by runs of three words. Among the
    authors' own personas the highest similarity is 0.02, among their golds 0.26, so 0.5 and 0.6 are
    far from chance. Golds of a task whose median similarity (content words) reaches `alike` did not
    depend on the person; the authors' highest is 0.30 ("How do I get ahold of my Congressman").
    """

    tasks: float = 0.65
    personas: float = 0.5
    golds: float = 0.6
    alike: float = 0.5


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


def check_dataset(
    dataset: Dataset,
    *,
    thresholds: Thresholds | None = None,
    limits: Mapping[str, float] | None = None,
) -> QualityReport:
    """Runs every check. `limits` maps a kind of finding to the largest count (int) or share (float)
    that is no error.
    """
    thresholds = thresholds or Thresholds()
    counts = split_counts(dataset)
    totals = {
        "tasks": len(dataset.tasks),
        "personas": len(dataset.personas),
        "golds": len(dataset.golds),
        "pairs": sum(count["pairs"] for count in counts.values()),
    }
    findings = Findings(totals, limits or {})
    for dropped in dataset.dropped:
        findings.add("unusable_record", dropped.where, dropped.reason)
    _check_texts(list(dataset.tasks.values()), "task", thresholds.tasks, findings)
    _check_texts(list(dataset.personas.values()), "persona", thresholds.personas, findings)
    _check_gold_texts(dataset, thresholds.golds, findings)
    _check_people(dataset, findings)
    _check_pairs(dataset, counts, findings)
    english = is_english(dataset)
    if not english:
        findings.add("not_english", dataset.name, "plain_task by wording, addressed_to_*, asks_*")
    similar = check_golds(dataset, findings, english=english)
    _check_plain(dataset, similar, thresholds.alike, findings, english)
    return QualityReport(dataset.name, counts, length_table(dataset), findings.all())


def split_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Per split: tasks, those that need a question, personas, facts, pairs and golds."""
    golds = Counter(
        dataset.tasks[task].split
        for task, persona in dataset.golds
        if dataset.tasks[task].split == dataset.personas[persona].split
        and dataset.tasks[task].needs_question
    )
    counts = {}
    for split in dataset.splits:
        tasks = [task for task in dataset.tasks.values() if task.split == split]
        needing = sum(task.needs_question for task in tasks)
        personas = [p for p in dataset.personas.values() if p.split == split]
        counts[split] = {
            "tasks": len(tasks),
            "tasks needing a question": needing,
            "personas": len(personas),
            "facts": sum(len(persona.facts) for persona in personas),
            "pairs": needing * len(personas),
            "golds": golds[split],
        }
    return counts


def length_table(dataset: Dataset) -> dict[str, dict[str, float]]:
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


def is_english(dataset: Dataset) -> bool:
    """Whether function words of English make up at least a fifth of the texts (English has about
    half; other languages in the same letters a few per cent).
    """
    texts = [text for text, _ in list(dataset.golds.values())[:200]]
    texts += [task.text for task in list(dataset.tasks.values())[:200]]
    found = [word for text in texts for word in words(text)]
    return sum(word in STOPWORDS for word in found) >= 0.2 * max(1, len(found))


def _check_texts(
    records: Sequence[Task] | Sequence[Persona], kind: str, threshold: float, findings: Findings
) -> None:
    """Repeated and nearly repeated tasks or personas, within a split and between splits."""
    first: dict[str, Task | Persona] = {}
    reported: set[tuple[str, str]] = set()
    for record in records:
        other = first.setdefault(same_text_key(record.text), record)
        if other.id != record.id:
            same = other.split == record.split
            blemish = f"duplicate_{kind}" if same else f"{kind}_in_two_splits"
            findings.add(blemish, record.id, f"as {other.id}: {record.text[:60]}")
            reported.add((other.id, record.id))
    features = features_of((record.text for record in records), f"{kind}s")
    for group in groups_of(near_duplicates(features, threshold), len(records)):
        for number, index in enumerate(group):
            record = records[index]
            if (first[same_text_key(record.text)].id, record.id) in reported:
                continue
            # Some earlier members, the first and the last: a group can have thousands.
            earlier = {*group[: min(number, _HEADS)], *group[max(0, number - _HEADS) : number]}
            near = [(jaccard(features[i], features[index]), i) for i in sorted(earlier)]
            near = [(similarity, i) for similarity, i in near if similarity >= threshold]
            if not near:
                continue
            # One in another split is worse than a nearer one in the same.
            similarity, i = max(near, key=lambda n: (records[n[1]].split != record.split, n))
            other = records[i]
            same = other.split == record.split
            blemish = f"near_duplicate_{kind}" if same else f"{kind}_nearly_in_two_splits"
            detail = f"{similarity:.2f} like {other.id}: {record.text[:60]} | {other.text[:60]}"
            findings.add(blemish, record.id, detail)


def _check_gold_texts(dataset: Dataset, threshold: float, findings: Findings) -> None:
    pairs = list(dataset.golds)
    texts = [text for text, _ in dataset.golds.values()]
    first: dict[str, int] = {}
    repeated = set()
    for index, text in enumerate(texts):
        other = first.setdefault(same_text_key(text), index)
        if other != index:
            repeated.add(index)
            findings.add("duplicate_gold", _pair_id(pairs[index]), f"as {_pair_id(pairs[other])}")
    for match in near_duplicates(features_of(texts, "golds"), threshold):
        if match.index not in repeated:
            detail = f"{match.similarity:.2f} like {_pair_id(pairs[match.other])}"
            findings.add("near_duplicate_gold", _pair_id(pairs[match.index]), detail)


def _pair_id(pair: tuple[str, str]) -> str:
    return f"{pair[0]}:{pair[1]}"


def _check_people(dataset: Dataset, findings: Findings) -> None:
    names: dict[tuple[str, str], str] = {}
    for persona in dataset.personas.values():
        other = names.setdefault((persona.split, persona.name.casefold()), persona.id)
        if other != persona.id:
            findings.add("same_name", persona.id, f"{persona.name}, as {other}")
        if not persona.facts:
            findings.add("no_facts", persona.id)


def _check_pairs(
    dataset: Dataset, counts: Mapping[str, Mapping[str, int]], findings: Findings
) -> None:
    for split, count in counts.items():
        if not count["golds"] and count["pairs"]:
            detail = f"none of its {count['pairs']} pairs has a gold"
            findings.add("pair_without_gold", f"split {split}", detail, count=count["pairs"])
    for task in dataset.tasks.values():
        count = counts[task.split]
        if task.needs_question and 0 < count["golds"] < count["pairs"]:
            for persona in dataset.personas.values():
                if persona.split == task.split and (task.id, persona.id) not in dataset.golds:
                    findings.add("pair_without_gold", _pair_id((task.id, persona.id)))


def _check_plain(
    dataset: Dataset,
    similar: Mapping[str, float],
    alike: float,
    findings: Findings,
    english: bool,
) -> None:
    for task in dataset.tasks.values():
        if not task.needs_question:
            continue
        if english and asks_for_a_fact(task.text):
            findings.add("plain_task", task.id, f"asks for a fact: {task.text[:80]}")
        elif similar.get(task.id, 0.0) >= alike:
            detail = f"its golds are alike ({similar[task.id]:.2f}): {task.text[:80]}"
            findings.add("plain_task", task.id, detail)
