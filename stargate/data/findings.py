"""What the quality checks say: findings of a kind, with a level, a count and examples.

    error    the data must not be used so (a text in two splits)
    warning  look at it (a gold that seems to ignore its persona)
    note     worth knowing (pairs without a gold)

A limit given by the user (`--max KIND=...`) that is exceeded makes its finding an error.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stargate.errors import DataError

Level = Literal["error", "warning", "note"]

# How many cases of a kind are listed; all are counted.
MAX_LISTED = 1000

# kind -> (level, what its share is a share of, what it means)
KINDS: dict[str, tuple[Level, str, str]] = {
    "task_in_two_splits": ("error", "tasks", "same text in two splits: the test is no test"),
    "persona_in_two_splits": ("error", "personas", "same text in two splits: the test is no test"),
    "persona_nearly_in_two_splits": ("error", "personas", "nearly the same text in two splits"),
    "task_nearly_in_two_splits": (
        "warning",
        "tasks",
        "asks nearly the same as another split's",
    ),
    "unusable_record": ("warning", "golds", "row that the loader leaves out"),
    "duplicate_task": ("warning", "tasks", "same text as another of its split"),
    "duplicate_persona": ("warning", "personas", "same text as another of its split"),
    "duplicate_gold": ("warning", "golds", "same text as another gold"),
    "near_duplicate_task": ("warning", "tasks", "asks nearly the same as another of its split"),
    "near_duplicate_persona": ("warning", "personas", "nearly the same text as another"),
    "near_duplicate_gold": ("warning", "golds", "nearly the same text as another gold"),
    "ignores_persona": ("warning", "golds", "tells no more of its persona than of the others"),
    "unneeded_facts": (
        "warning",
        "golds",
        "tells facts that the task does not need",
    ),
    "plain_task": ("warning", "tasks", "seems to need no question, though needs_question is true"),
    "addressed_to_nobody": ("warning", "golds", 'says neither "you" nor the name'),
    "addressed_to_another": ("warning", "golds", "begins with the name of another persona"),
    "asks_or_refuses": ("warning", "golds", "asks back or declines instead of answering"),
    "cut_off": ("warning", "golds", "does not end like a text"),
    "no_facts": ("warning", "personas", "persona without facts: cannot be grounded in facts"),
    "not_english": ("note", "golds", "checks that know only English were left out"),
    "same_name": ("note", "personas", "has the name of another persona of its split"),
    "gold_across_splits": ("note", "golds", "task and persona of different splits: never used"),
    "pair_without_gold": ("note", "pairs", "pair that is never scored nor trained on"),
}


@dataclass
class Finding:
    """All cases of one kind."""

    kind: str
    of: int  # how many records could have been found
    count: int = 0
    limit: float | None = None
    cases: list[tuple[str, str]] = field(default_factory=list)  # (where, detail)

    @property
    def exceeded(self) -> bool:
        """Whether the user's limit is exceeded: an int is a count, a float a share."""
        if self.limit is None:
            return False
        return self.count > self.limit if isinstance(self.limit, int) else self.share > self.limit

    @property
    def level(self) -> Level:
        return "error" if self.exceeded else KINDS[self.kind][0]

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "level": self.level,
            "meaning": KINDS[self.kind][2],
            "count": self.count,
            "of": self.of,
            "share": round(self.share, 6),
            "limit": self.limit,
            "cases": [{"where": where, "detail": detail} for where, detail in self.cases],
        }


class Findings:
    """Collects the cases of all kinds."""

    def __init__(self, totals: Mapping[str, int], limits: Mapping[str, float]) -> None:
        self._found = {
            kind: Finding(kind, totals[of], limit=limits.get(kind))
            for kind, (_, of, _) in KINDS.items()
        }

    def add(self, kind: str, where: str, detail: str = "", *, count: int = 1) -> None:
        """One case; `count` where it stands for many."""
        finding = self._found[kind]
        finding.count += count
        if len(finding.cases) < MAX_LISTED:
            finding.cases.append((where, detail))

    def all(self) -> list[Finding]:
        """The findings that have a case, errors first."""
        found = [finding for finding in self._found.values() if finding.count]
        return sorted(found, key=lambda f: ("error", "warning", "note").index(f.level))


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """ "KIND=LIMIT" each: a whole number is a count, a decimal between 0 and 1 a share.

    Raises DataError naming the known kinds.
    """
    limits: dict[str, float] = {}
    for text in texts:
        kind, _, value = text.partition("=")
        if kind not in KINDS:
            raise DataError(f"--max {text}: no such kind; known: {', '.join(KINDS)}")
        if re.fullmatch(r"\d+", value):
            limits[kind] = int(value)
        elif re.fullmatch(r"0?\.\d+|1\.0*|0\.", value):
            limits[kind] = float(value)
        else:
            raise DataError(
                f"--max {text}: expected a count such as {kind}=3 or a share such as {kind}=0.05"
            )
    return limits
