"""Checks each gold against its persona, its task and the task's other golds.

All of it counts content words (function words left out, crudely stemmed), so it is cheap, and blind
to paraphrase: read what it lists before acting on it.

**ignores_persona.** Two sums over the words that a gold shares with its persona (without the task's
words and the name), each compared with chance:

    others' golds     each shared word weighs log(golds of the task / golds of the task with it);
                      compared with the mean over the task's other golds of what THEY share with
                      this persona: a gold for somebody else
    others' personas  each shared word weighs log(personas / personas that have it); compared with
                      the mean over the split's other personas of what this gold shares with THEM

A gold that is below chance in either, or shares nothing, is listed. Golds swapped between two
personas of one task are found so in 86 % (starter set) to 96 % (the authors' sample) of the cases.

**unneeded_facts.** Where `facts_used` is given: a fact outside it counts as told when at least two
of its words, and 40 % of them, stand in the gold; words of the task, of the used facts, of the name
and words that more than a third of the task's golds have do not count. Where it is not given: the
gold has at least 12 distinct words of its persona, and at least twice the median of the task's
other golds: it tells the profile back.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from stargate.data.dataset import Dataset
from stargate.data.findings import Cases
from stargate.data.text import QUOTES, content_stem, content_words, word_set, words
from stargate.types import Persona, Task

# A fact is told when so much of it stands in the gold; two words may meet by chance at 1/3.
_TOLD_SHARE, _TOLD_WORDS = 0.4, 2
_CRAMMED_WORDS, _CRAMMED_RATIO = 12, 2.0
# Below chance by less than rounding is not below chance.
_EPSILON = 1e-9
_YOU = word_set("you your yours yourself yourselves you'll you're you've you'd")
_ASKS_OR_REFUSES = re.compile(
    r"\bas an ai\b|\b(i'm|i am) (sorry|afraid)\b[^.]{0,60}\b(can't|cannot|unable|need|don't have)\b"
    r"|\bi('ll| will| would|'d)? need (some |a bit |a few |a little )?more"
    r"( \w+){0,2} (information|details?|context|specifics)\b"
    r"|\b(could|can|would) you (please )?(tell|provide|share|specify|clarify|let me know)\b"
    r"|\bi (can't|cannot|am unable to|'m unable to) (help|assist|provide|recommend|answer)\b",
    re.I,
)
_ENDS = tuple(".!?\u2026\"'\u201d\u2019)]*\u3002\uff01\uff1f")
_LIST_ITEM = re.compile(r"\s*([-*\u2022]|\d{1,3}[.)])\s")
_SAMPLED = 10  # golds of a task that are compared with each other: 45 comparisons
_GREETING = 60  # characters in which a gold would name whom it addresses

Words = frozenset[str]


@dataclass(frozen=True, slots=True)
class _People:
    """What the personas of one split have in common."""

    words: Mapping[str, Words]  # persona id -> the words of its profile and facts, without its name
    names: Mapping[str, Words]
    counts: Counter[str]  # word -> personas that have it
    first_names: Words


@dataclass(frozen=True, slots=True)
class _Gold:
    where: str
    persona: Persona
    text: str
    facts_used: tuple[int, ...]
    words: Words


@dataclass(frozen=True, slots=True)
class _Group:
    """The golds of one task."""

    task: Task
    golds: list[_Gold]
    task_words: Words
    counts: Counter[str]  # word -> golds that have it
    people: _People


def check_golds(dataset: Dataset, cases: Cases, *, english: bool) -> dict[str, float]:
    """All checks of golds, task by task: memory does not grow with the number of tasks.

    Returns the typical similarity of each task's golds.
    """
    typical = {}
    for group in _groups(dataset, cases):
        _check_ignored(group, cases)
        _check_unneeded(group, cases)
        for gold in group.golds:
            last = gold.text.rsplit("\n", 1)[-1]
            if not gold.text.endswith(_ENDS) and not _LIST_ITEM.match(last):
                cases.add("cut_off", gold.where, f"...{gold.text[-40:]}")
            if english:
                _check_wording(group, gold, cases)
        if len(group.golds) > 1:
            typical[group.task.id] = _typical_similarity(group.golds[:_SAMPLED])
    return typical


def _typical_similarity(golds: list[_Gold]) -> float:
    """The median Jaccard similarity of the golds' content words. Golds that are all alike mean that
    the person did not matter.
    """
    return median(
        len(one.words & other.words) / max(1, len(one.words | other.words))
        for number, one in enumerate(golds)
        for other in golds[:number]
    )


def _groups(dataset: Dataset, cases: Cases) -> Iterator[_Group]:
    people = {split: _people(dataset, split) for split in dataset.splits}
    personas: dict[str, list[Persona]] = {}
    for task_id, persona_id in dataset.golds:
        persona = dataset.personas[persona_id]
        if persona.split == dataset.tasks[task_id].split:
            personas.setdefault(task_id, []).append(persona)
        else:
            cases.add("gold_across_splits", f"{task_id}:{persona_id}")
    for task_id, those in personas.items():
        task = dataset.tasks[task_id]
        golds = []
        for persona in those:
            text, used = dataset.golds[task_id, persona.id]
            found = frozenset(content_words(text))
            golds.append(_Gold(f"{task_id}:{persona.id}", persona, text, used, found))
        counts = Counter(word for gold in golds for word in gold.words)
        yield _Group(task, golds, frozenset(content_words(task.text)), counts, people[task.split])


def _people(dataset: Dataset, split: str) -> _People:
    personas = dataset.personas_of(split)
    names = {persona.id: frozenset(content_words(persona.name)) for persona in personas}
    known = {
        persona.id: frozenset(content_words(" ".join([persona.text, *persona.facts])))
        - names[persona.id]
        for persona in personas
    }
    counts = Counter(word for found in known.values() for word in found)
    first_names = frozenset(name[0] for persona in personas if (name := words(persona.name)))
    return _People(known, names, counts, first_names)


def _check_ignored(group: _Group, cases: Cases) -> None:
    people, counts = group.people, group.counts
    num_golds, num_people = len(group.golds), len(people.words)
    for gold in group.golds:
        about = people.words[gold.persona.id] - group.task_words
        shared = about & gold.words
        below = not shared
        if num_golds > 1:
            own = sum(math.log(num_golds / counts[word]) for word in shared)
            others = sum(
                math.log(num_golds / counts[word]) * (counts[word] - (word in gold.words))
                for word in about
                if counts[word]
            )
            below = below or own < others / (num_golds - 1) - _EPSILON
        if num_people > 1:
            rest = gold.words - group.task_words - people.names[gold.persona.id]
            weight = {
                word: math.log(num_people / people.counts[word])
                for word in rest
                if people.counts[word]
            }
            own = sum(weight.get(word, 0.0) for word in shared)
            chance = sum(w * (people.counts[word] - (word in about)) for word, w in weight.items())
            below = below or own < chance / (num_people - 1) - _EPSILON
        if below:
            said = [word for word in words(gold.text) if content_stem(word) in shared]
            listed = ", ".join(list(dict.fromkeys(said))[:6]) or "no word"
            cases.add("ignores_persona", gold.where, f"shares with it: {listed}")


def _check_unneeded(group: _Group, cases: Cases) -> None:
    known = group.people.words
    told = [len((known[g.persona.id] - group.task_words) & g.words) for g in group.golds]
    for number, gold in enumerate(group.golds):
        if gold.facts_used:
            for index, fact in _told_facts(group, gold):
                cases.add("unneeded_facts", gold.where, f"fact {index}: {fact}")
            continue
        others = told[:number] + told[number + 1 :]
        if len(others) < 2 or told[number] < _CRAMMED_WORDS:
            continue
        usual = median(others)
        if told[number] >= _CRAMMED_RATIO * usual:
            detail = f"{told[number]} words of its persona; other golds of the task: {usual:g}"
            cases.add("unneeded_facts", gold.where, detail)


def _told_facts(group: _Group, gold: _Gold) -> Iterator[tuple[int, str]]:
    """The facts outside facts_used that the gold tells."""
    facts = gold.persona.facts
    rare = max(1.0, len(group.golds) / 3)
    needless = group.task_words | group.people.names[gold.persona.id]
    used = {word for index in gold.facts_used for word in content_words(facts[index])}
    for index, fact in enumerate(facts):
        about = set(content_words(fact)) - needless
        told = {word for word in (about - used) & gold.words if group.counts[word] <= rare}
        enough = len(told) >= max(_TOLD_WORDS, _TOLD_SHARE * len(about))
        if index not in gold.facts_used and enough:
            yield index, fact


def _check_wording(group: _Group, gold: _Gold, cases: Cases) -> None:
    said = set(words(gold.text))
    own_name = set(words(gold.persona.name))
    if not said & (_YOU | own_name):
        cases.add("addressed_to_nobody", gold.where, gold.text[:60])
    greeting = gold.text[:_GREETING]
    others = set(words(greeting)) & group.people.first_names
    if others and not own_name & set(words(greeting)):
        others -= set(words(f"{gold.persona.text} {group.task.text}"))
        # As a name is written: "Rose", not "rose".
        if any(re.search(rf"\b{re.escape(name.title())}\b", greeting) for name in others):
            cases.add("addressed_to_another", gold.where, greeting)
    if found := _ASKS_OR_REFUSES.search(gold.text.translate(QUOTES)):
        cases.add("asks_or_refuses", gold.where, found.group())
