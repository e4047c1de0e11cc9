"""Facts that a model took out of a profile: only what the profile states is kept.

    answer -> one fact per line -> repeated? first person? short? stated? -> kept, or dropped with a
    reason

A fact is stated if one sentence of the profile, or two that follow each other, contains most of its
telling words, all of its numbers and names, and does not deny what it says (nor the other way
round). This looks at words, not at meaning: it catches what was made up, mixed together from far
places or turned round, not a subtle change of sense. English only, as far as "not" goes.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stargate.data.build.config import FactsConfig
from stargate.data.text import (
    FIRST_PERSON,
    content_stem,
    same_text_key,
    sentence_spans,
    tidy,
    word_set,
    words,
)
from stargate.rollout.roleplayer import kept_share

_MARK = re.compile(r"^\s*(?:[-*\u2022\u2013]|\(?\d{1,2}[.):])\s+")
_NEGATIONS = word_set(
    "not no never nor neither none nothing nobody cannot without hardly can't don't doesn't didn't "
    "won't isn't aren't wasn't weren't haven't hasn't hadn't wouldn't couldn't shouldn't ain't"
)
_CLAUSE = re.compile(r"[,;:()\u2013\u2014]|\bbut\b|\balthough\b")
# How far a "not" reaches: so many words after it.
_REACH = 3


@dataclass(frozen=True, slots=True)
class CheckedFacts:
    """The facts that are kept, and how many were dropped why."""

    kept: tuple[str, ...]
    dropped: Counter[str] = field(default_factory=Counter)


def check_facts(answer: str, text: str, config: FactsConfig) -> CheckedFacts:
    """Reads an Oracle's answer, one fact per line, and keeps what `text` states."""
    kept: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    passages = _passages(text)
    for fact in fact_lines(answer):
        found = words(fact)
        if same_text_key(fact) in kept:
            dropped["fact_repeated"] += 1
        elif len(found) > config.maximum_words:
            dropped["fact_too_long"] += 1
        elif not FIRST_PERSON & set(found):
            dropped["fact_not_in_first_person"] += 1
        elif not is_stated(fact, passages, config.stated_share):
            dropped["fact_not_stated"] += 1
        else:
            kept[same_text_key(fact)] = fact
    return CheckedFacts(tuple(kept.values()), dropped)


def fact_lines(answer: str) -> list[str]:
    """The lines of an answer without their list marks; headings ("Facts:") and blanks are none."""
    lines = [_MARK.sub("", tidy(line)).strip() for line in answer.splitlines()]
    return [line for line in lines if line and not line.endswith(":") and words(line)]


def is_stated(fact: str, passages: Sequence[str], share: float) -> bool:
    """Whether a passage holds `share` of the fact's telling words, its numbers, and its "not"s."""
    told = _without_negations(fact)
    return any(
        kept_share(_without_negations(passage), told) >= share
        and _numbers(fact) <= _numbers(passage)
        and _names(fact) <= set(words(passage))
        and not _turned_round(fact, passage)
        for passage in passages
    )


def _passages(text: str) -> list[str]:
    """Each sentence, and each two that follow each other."""
    spans = sentence_spans(text)
    single = [text[start:end] for start, end in spans]
    double = [text[first[0] : second[1]] for first, second in pairwise(spans)]
    return single + double


def _numbers(text: str) -> set[str]:
    return {number.rstrip(".,") for number in re.findall(r"\d[\d.,]*", text)}


def _names(text: str) -> set[str]:
    """Words with a capital that do not begin a sentence: those a model must not vary."""
    inner = re.findall(r"(?<![.!?] )(?<!^)\b[A-Z][^\W\d_]+(?:['\u2019][^\W_]+)*", text)
    return {word for name in inner for word in words(name)} - FIRST_PERSON


def _without_negations(text: str) -> str:
    """ "can't" and "cannot" are the same "not", which is looked at by itself."""
    return " ".join(word for word in words(text) if word not in _NEGATIONS)


def _turned_round(fact: str, passage: str) -> bool:
    """Whether one of the two denies what the other says."""
    if set(words(fact)) & _NEGATIONS and not set(words(passage)) & _NEGATIONS:
        return True
    said_here, denied_here = _claims(fact)
    about = said_here | denied_here
    # "I never eat meat, but I eat fish": what counts is the part that speaks of the same thing.
    parts = [_claims(part) for part in _CLAUSE.split(passage)]
    said_there, denied_there = max(parts, key=lambda part: len((part[0] | part[1]) & about))
    return bool(
        (denied_there - said_there) & said_here or (said_there - denied_there) & denied_here
    )


def _claims(text: str) -> tuple[set[str], set[str]]:
    """Stems of the telling words that are said, and of those that a "not" reaches first."""
    found = [(word in _NEGATIONS, content_stem(word)) for word in words(text)]
    denied_at = set()
    for index, (negates, _) in enumerate(found):
        if negates:
            reached = range(index + 1, min(index + 1 + _REACH, len(found)))
            denied_at.add(next((i for i in reached if found[i][1]), -1))
    stems = [(index, stem) for index, (negates, stem) in enumerate(found) if stem and not negates]
    said = {stem for index, stem in stems if index not in denied_at}
    return said, {stem for index, stem in stems if index in denied_at}
