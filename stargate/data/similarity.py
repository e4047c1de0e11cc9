"""Finds texts that are nearly the same among many, without comparing all pairs.

    text -> features (runs of words, or content words) -> MinHash signature -> bands
         -> texts that share a band are compared exactly (Jaccard) -> groups

Jaccard similarity is the share of features that both texts have among those that either has. Two
texts of similarity s share one of the 32 bands of 4 values with probability 1 - (1 - s^4)^32: 0.99
at 0.6, 0.9998 at 0.7. Every reported similarity is exact, so a match is never a hash accident.
Memory is about 12 bytes per word of text; 25,500 golds take some seconds on one core.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stargate.data.text import content_words, words

_BANDS, _ROWS = 32, 4
# A text is compared with at most so many others per band: bounds the time for texts that are all
# made from one template. Groups grow by single links, so few are enough.
_MAX_COMPARED = 3
# Odd constants of 64 bits that mix word numbers into features (the golden ratio, and primes).
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)

Features = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Match:
    """Text `index` is nearly the same as the earlier text `other`."""

    other: int
    index: int
    similarity: float


class Vocabulary:
    """Numbers words, so that a text is an array. One per comparison."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def runs(self, text: str, length: int = 3) -> Features:
        """The distinct runs of `length` (at most 3) words; a shorter text is one run."""
        numbers = self._encode(words(text))
        if numbers.size == 0:
            return numbers
        length = min(length, numbers.size, _MIX.size)
        count = numbers.size - length + 1
        runs = np.zeros(count, dtype=np.uint64)
        for offset in range(length):
            runs = runs * _MIX[0] + _scramble(numbers[offset : offset + count] * _MIX[offset])
        return np.unique(_scramble(runs))

    def content(self, text: str) -> Features:
        """The distinct content words: for texts as short as a task."""
        return np.unique(_scramble(self._encode(content_words(text)) * _MIX[0]))

    def _encode(self, found: Iterable[str]) -> Features:
        numbers = self._numbers
        return np.array(
            [numbers.setdefault(word, len(numbers) + 1) for word in found], dtype=np.uint64
        )


def near_duplicates(features: Sequence[Features], threshold: float) -> list[Match]:
    """Each text that is at least `threshold` similar to an earlier one, once, in order.

    Groups of more than two come as links of a tree: every member but the first is an `index`.
    """
    signatures = _signatures(features)
    group = _Groups(len(features))
    refused: set[tuple[int, int]] = set()
    matches: list[Match] = []
    for band in range(_BANDS):
        for members in _buckets(signatures[:, band * _ROWS : (band + 1) * _ROWS]):
            heads: list[int] = []
            for index in members:
                for other in heads:
                    if group.same(other, index) or (other, index) in refused:
                        continue
                    similarity = jaccard(features[other], features[index])
                    if similarity >= threshold:
                        group.join(other, index)
                        matches.append(Match(other, index, similarity))
                    else:
                        refused.add((other, index))
                if len(heads) < _MAX_COMPARED and not any(group.same(h, index) for h in heads):
                    heads.append(index)
    return sorted(matches, key=lambda match: (match.index, match.other))


def jaccard(one: Features, other: Features) -> float:
    """Jaccard similarity of two arrays of distinct features."""
    if one.size == 0 or other.size == 0:
        return 0.0
    shared = np.intersect1d(one, other, assume_unique=True).size
    return float(shared / (one.size + other.size - shared))


def groups_of(matches: Sequence[Match], count: int) -> list[list[int]]:
    """The groups of two and more that the matches link, each in order."""
    group = _Groups(count)
    for match in matches:
        group.join(match.other, match.index)
    members: dict[int, list[int]] = {}
    for index in sorted({i for match in matches for i in (match.other, match.index)}):
        members.setdefault(group.head(index), []).append(index)
    return list(members.values())


def features_of(texts: Iterable[str], kind: str) -> list[Features]:
    """Features of texts that are compared with each other: runs of words, or for tasks content
    words.
    """
    vocabulary = Vocabulary()
    encode: Callable[[str], Features] = vocabulary.content if kind == "tasks" else vocabulary.runs
    return [encode(text) for text in texts]


def _signatures(features: Sequence[Features]) -> NDArray[np.uint64]:
    """(texts, 128): the smallest of each of 128 hashes over a text's features."""
    random = np.random.default_rng(20240403)  # any fixed seed: the same matches every time
    size = _BANDS * _ROWS
    factors = random.integers(0, 2**63, size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = random.integers(0, 2**63, size, dtype=np.uint64)
    signatures = np.zeros((len(features), size), dtype=np.uint64)
    for index, found in enumerate(features):
        if found.size:
            signatures[index] = (found[:, None] * factors + offsets).min(axis=0)
    return signatures


def _buckets(band: NDArray[np.uint64]) -> Iterable[list[int]]:
    """Indices of texts that share a band's values; texts without features share none."""
    keys = np.ascontiguousarray(band).view([("", np.uint64)] * band.shape[1]).ravel()
    order = np.argsort(keys, kind="stable")
    ordered: Any = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        if end - start > 1 and band[order[start]].any():
            yield order[start:end].tolist()


def _scramble(values: Features) -> Features:
    """Spreads nearby numbers over 64 bits (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Groups:
    """Disjoint groups of numbers (union-find); the smallest number heads its group."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def head(self, index: int) -> int:
        while self._above[index] != index:
            self._above[index] = self._above[self._above[index]]
            index = self._above[index]
        return index

    def same(self, one: int, other: int) -> bool:
        return self.head(one) == self.head(other)

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.head(one), self.head(other)))
        self._above[second] = first
