"""Finds texts that are nearly the same among many, without comparing all pairs.

    text -> features (runs of words, or content words) -> MinHash signature -> bands
         -> earlier texts that share a band are compared (Jaccard)

Jaccard similarity is the share of features that both texts have among those that either has. Two
texts of similarity s share one of the 32 bands of 4 values with probability 1 - (1 - s^4)^32: 0.99
at 0.6, 0.9998 at 0.7. Every reported similarity is computed, so a match is never an accident of the
bands. 25,500 golds take some seconds on one core, and some 100 bytes per word of memory.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from stargate.data.text import content_words, words

# From which similarity on two texts count as nearly the same. Tasks are compared by content words,
# personas and golds by runs of three words. Among the authors' own personas the highest similarity
# is 0.02, among their golds 0.26, so 0.5 and 0.6 are far from chance.
THRESHOLDS = {"tasks": 0.65, "personas": 0.5, "golds": 0.6}
_RUN_LENGTH = {"tasks": 1, "personas": 3, "golds": 3}
_BANDS, _ROWS = 32, 4
# A text is compared with at most so many earlier ones per band: bounds the time for texts that are
# all made from one template.
_MAX_KEPT = 8

Features = NDArray[np.uint64]


def features_of(text: str, kind: str) -> Features:
    """What texts of a kind are compared by, as distinct numbers. A text shorter than a run is one
    run.
    """
    found = content_words(text) if kind == "tasks" else words(text)
    length = min(_RUN_LENGTH[kind], len(found))
    starts = range(len(found) - length + 1) if found else ()
    runs = [crc32(" ".join(found[start : start + length]).encode()) for start in starts]
    return np.unique(np.array(runs, dtype=np.uint64))


def jaccard(one: Features, other: Features) -> float:
    """Jaccard similarity, 0 to 1; 0 for what has no features."""
    shared = np.intersect1d(one, other, assume_unique=True).size
    return float(shared / (one.size + other.size - shared)) if shared else 0.0


def near_duplicates(
    texts: Sequence[str], kind: str, threshold: float | None = None
) -> Iterator[tuple[int, list[tuple[float, int]]]]:
    """Each text that is nearly the same as earlier ones, with (similarity, index) of these.

    Where a text is near to many, some of the first are given. `threshold` None: the kind's own.
    """
    threshold = THRESHOLDS[kind] if threshold is None else threshold
    random = np.random.default_rng(20240403)  # any fixed seed: the same matches every time
    factors = random.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
    offsets = random.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64)
    features = [features_of(text, kind) for text in texts]
    kept: dict[bytes, list[int]] = {}  # band and its values -> the texts that have them
    for index, found in enumerate(features):
        if not found.size:
            continue
        # The smallest of each of 128 hashes over the text's features, four to a band.
        signature = (found[:, None] * factors + offsets).min(axis=0).reshape(_BANDS, _ROWS)
        bands = [bytes([band]) + values.tobytes() for band, values in enumerate(signature)]
        same_band = [kept.setdefault(band, []) for band in bands]
        compared = [(jaccard(features[i], found), i) for i in sorted(set(chain(*same_band)))]
        near = [(similarity, other) for similarity, other in compared if similarity >= threshold]
        for others in same_band:
            if len(others) < _MAX_KEPT:
                others.append(index)
        if near:
            yield index, near
