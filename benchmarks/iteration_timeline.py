"""When the stages of an iteration ran, and how long several of them ran at once. Pure.

counters.span("score") of every pair -> (stage, from, to) -> seconds of each stage
                                                       -> seconds that two stages had in common
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations

from stargate.records.counters import Counters


@dataclass(frozen=True, slots=True)
class Span:
    """A stage of one pair: seconds on one clock."""

    stage: str
    start: float
    end: float


@dataclass
class Timeline(Counters):
    """A counters that also remembers when each span was."""

    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with super().span(name):
                yield
        finally:
            self.spans.append(Span(name, started, time.perf_counter()))


def by_stage(spans: Iterable[Span]) -> dict[str, list[tuple[float, float]]]:
    """The times at which a stage ran for any pair, in order, without gaps of zero length."""
    stages: dict[str, list[tuple[float, float]]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        times = stages.setdefault(span.stage, [])
        if times and span.start <= times[-1][1]:
            times[-1] = (times[-1][0], max(times[-1][1], span.end))
        else:
            times.append((span.start, span.end))
    return stages


def stage_seconds(spans: Iterable[Span]) -> dict[str, float]:
    """Wall time of each stage."""
    return {stage: _length(times) for stage, times in by_stage(spans).items()}


def shared_seconds(spans: Iterable[Span]) -> dict[str, float]:
    """For every two stages, by "one+other": the seconds at which both ran."""
    stages = by_stage(spans)
    return {
        f"{one}+{other}": _length(_common(stages[one], stages[other]))
        for one, other in combinations(stages, 2)
    }


def idle_shares(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Of each name whose busy seconds grew from `before` to `after`: the idle share of the time."""
    return {name: max(0.0, 1.0 - (after[name] - before[name]) / seconds) for name in before}


def _length(times: Sequence[tuple[float, float]]) -> float:
    return sum(end - start for start, end in times)


def _common(
    ones: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Where both run. Each list is in order and its times do not touch."""
    found = [
        (max(one[0], other[0]), min(one[1], other[1]))
        for one in ones
        for other in others
        if one[0] < other[1] and other[0] < one[1]
    ]
    return found
