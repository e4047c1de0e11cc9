"""What became of everything that a build read, asked and made: OUT/build-report.json.

Every record that did not become part of the data is counted here under its reason, and named while
there are not too many.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stargate.oracle.cost import Meter

# How many drops of one reason are listed; all are counted, and missing-golds.jsonl names each gold.
MAX_LISTED = 1000


@dataclass
class Drops:
    """Records that were not used: counted by reason, listed up to a limit."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, reason: str, where: str, detail: str = "") -> None:
        self.counts[reason] += 1
        listed = self.listed.setdefault(reason, [])
        if len(listed) < MAX_LISTED:
            listed.append({"where": where, "detail": detail})

    def to_json(self) -> dict[str, Any]:
        return {"counts": dict(sorted(self.counts.items())), "listed": self.listed}


@dataclass
class SourceReport:
    """Tasks and personas: made once, kept with them in OUT.partial."""

    import_report: dict[str, Any] = field(default_factory=dict)
    personas: Drops = field(default_factory=Drops)
    facts: Counter[str] = field(default_factory=Counter)
    persona_calls: int = 0
    persona_rounds: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "read": self.import_report,
            "personas_not_used": self.personas.to_json(),
            "facts": dict(sorted(self.facts.items())),
            "persona_calls": self.persona_calls,
            "persona_rounds": self.persona_rounds,
        }


@dataclass
class GoldReport:
    """Pairs by what became of them."""

    golds: Counter[str] = field(default_factory=Counter)  # per split
    missing: Drops = field(default_factory=Drops)
    plain_pairs: int = 0  # of tasks that need no question: they get no gold

    @property
    def num_golds(self) -> int:
        return self.golds.total()

    @property
    def num_failed(self) -> int:
        """Pairs that nobody answered: asking again may help."""
        return self.missing.counts["oracle_failed"]

    def to_json(self) -> dict[str, Any]:
        return {
            "golds": dict(self.golds),
            "missing_golds": self.missing.to_json(),
            "pairs_of_plain_tasks": self.plain_pairs,
        }


def meter_json(meter: Meter) -> dict[str, Any]:
    """What the build has cost so far, in all its runs."""
    return {
        "calls": meter.calls,
        "prompt_tokens": meter.prompt_tokens,
        "completion_tokens": meter.completion_tokens,
        "money": meter.money,
        "unpriced_calls": meter.unpriced_calls,
        "lost_calls": meter.lost_calls,
        "lost_money": meter.lost_money,
    }
