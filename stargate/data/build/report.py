"""What became of everything that a build read, asked and made: OUT/build-report.json.

Every record that did not become part of the data is counted here under its reason, and named while
there are not too many (missing-golds.jsonl names each gold).
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stargate.data.findings import Cases


class Drops(Cases):
    """Records that were not used, by reason."""

    def to_json(self) -> dict[str, Any]:
        listed = {reason: self.listed_json(reason) for reason in self.listed}
        return {"counts": dict(sorted(self.counts.items())), "listed": listed}


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

    plain_pairs: int  # of tasks that need no question: they get no gold
    golds: Counter[str] = field(default_factory=Counter)  # per split
    missing: Drops = field(default_factory=Drops)

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
