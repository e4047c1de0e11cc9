"""What an importer found in data that is not as it should be: counted, listed, never silent.

    report.add("empty_gold", where, detail)    ->  the screen and OUT/import-report.json

Each kind says what was done about it: "left out" (the record is not imported), "mended" (it is,
changed) or "noted" (it is, as it was).
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Action = Literal["left out", "mended", "noted"]
ACTIONS: tuple[Action, ...] = ("left out", "mended", "noted")

# How many blemishes of one kind are listed; all are counted. Bounds the memory for hopeless files.
MAX_LISTED = 1000

# kind -> (what was done, what it means)
KINDS: dict[str, tuple[Action, str]] = {
    "row_malformed": ("left out", "line, row or element that can't be read as a record"),
    "empty_task": ("left out", "task without text"),
    "empty_persona": ("left out", "persona without text"),
    "empty_gold": ("left out", "gold without text"),
    "duplicate_task": ("left out", "same text as an earlier task of its split"),
    "duplicate_persona": ("left out", "same text as an earlier persona of its split"),
    "task_in_two_splits": ("left out", "same text as a task of another split, which is kept"),
    "persona_in_two_splits": ("left out", "same text as a persona of another split, which is kept"),
    "repeated_id": ("left out", "an id that an earlier record has"),
    "no_split": ("left out", "record without a usable split"),
    "row_beyond_splits": ("left out", "row after the counts of --splits"),
    "persona_without_name": ("left out", "persona with no name beside it or in its text"),
    "malformed_gold_key": ("left out", 'gold key that is not "prompt-I persona-J"'),
    "repeated_gold_key": ("left out", "gold key that stands in the file twice: the last counts"),
    "gold_out_of_range": ("left out", "gold of a task or persona that the data does not have"),
    "gold_of_left_out_task": ("left out", "gold of a task that was left out"),
    "gold_of_left_out_persona": ("left out", "gold of a persona that was left out"),
    "second_gold": ("left out", "second gold of a pair"),
    "odd_spacing": ("mended", "doubled, leading or trailing blanks: made single, or removed"),
    "control_characters": ("mended", "invisible control characters: removed"),
    "several_gold_texts": ("mended", "more than one text for one gold: the first counts"),
    "odd_gold_key": ("mended", "gold key with odd spacing or case"),
    "name_missing": ("mended", "no name beside the persona: taken from its text"),
    "name_not_in_text": (
        "mended",
        "name beside the persona is not in its text, which names another",
    ),
    "bad_id": ("mended", "id with characters that ids can't have: replaced"),
    "bad_value": ("mended", "value of a wrong type: its default counts"),
    "facts_used_unusable": ("mended", "facts_used that the persona does not have: removed"),
    "unknown_column": ("mended", "column that a dataset does not have: not imported"),
    "facts_from_profile": ("noted", "persona without facts: its profile's sentences are its facts"),
    "introduction_left_out": ("noted", "profile sentence that only tells the name: not a fact"),
    "facts_in_third_person": ("noted", "facts speak of the persona; the Roleplayer must word them"),
    "names_count_differs": ("noted", "not as many names as personas"),
    "name_unconfirmed": ("noted", "name that does not stand in the persona's text"),
    "repeated_name": ("noted", "two personas of one split have the same name"),
    "broken_encoding": ("noted", "text that was decoded wrongly once"),
    "question_without_mark": ("noted", "question that does not end with a question mark"),
    "pair_without_gold": ("noted", "pair without a gold, in a split that has golds"),
    "gold_across_splits": ("noted", "gold of a task and a persona of different splits: never used"),
    "missing_part": ("noted", "file that the layout has, but this data has not"),
    "unread_file": ("noted", "file that is no part of the layout: not read"),
}


@dataclass(frozen=True, slots=True)
class Blemish:
    """One record or file that is not as it should be."""

    kind: str
    where: str
    detail: str


@dataclass
class ImportReport:
    """Everything that an import found, and what it wrote."""

    source: str
    source_format: str
    counts: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[Blemish]] = field(default_factory=dict)
    # split -> {"tasks": 250, "personas": 50, "facts": 310, "golds": 0}
    written: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Counts one blemish, and lists it while there are not too many of its kind."""
        if kind not in KINDS:
            raise ValueError(f"no kind of blemish is called {kind!r}")
        self.counts[kind] += 1
        listed = self.listed.setdefault(kind, [])
        if len(listed) < MAX_LISTED:
            listed.append(Blemish(kind, where, detail))

    def wrote(self, split: str, what: str, count: int = 1) -> None:
        self.written.setdefault(split, Counter())[what] += count

    def num(self, action: Action) -> int:
        """How many blemishes were treated so."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind][0] == action)

    def kinds(self) -> list[str]:
        """The kinds found, in the order of KINDS: what was left out first."""
        return [kind for kind in KINDS if self.counts[kind]]

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "format": self.source_format,
            "written": {split: dict(counts) for split, counts in self.written.items()},
            "blemishes": [
                {
                    "kind": kind,
                    "action": KINDS[kind][0],
                    "meaning": KINDS[kind][1],
                    "count": self.counts[kind],
                    "listed": [
                        {"where": blemish.where, "detail": blemish.detail}
                        for blemish in self.listed[kind]
                    ],
                }
                for kind in self.kinds()
            ],
        }


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Readable JSON. Text from data may hold any character; it is written as ASCII."""
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
