"""What is not as it should be in data: counted, listed, never silent.

    an import says what it did    left out  the record is not imported
                                  mended    it is, changed
                                  noted     it is, as it was
    a check says how bad it is    error     the data must not be used so (a text in two splits)
                                  warning   look at it (a gold that seems to ignore its persona)
                                  note      worth knowing (pairs without a gold)

A limit given by the user (`--max KIND=...`) that is exceeded makes its finding an error.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from stargate.errors import DataError

Action = Literal["left out", "mended", "noted"]
ACTIONS: tuple[Action, ...] = ("left out", "mended", "noted")
Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

# How many cases of one kind are listed; all are counted. Bounds the memory for hopeless files.
MAX_LISTED = 1000

# kind -> (what was done, what it means)
IMPORT_KINDS: dict[str, tuple[Action, str]] = {
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
    "persona_of_unknown_task": ("left out", "persona who asks one task, which the data has not"),
    "malformed_gold_key": ("left out", 'gold key that is not "prompt-I persona-J"'),
    "repeated_gold_key": ("left out", "gold key that stands in the file twice: the last counts"),
    "gold_out_of_range": ("left out", "gold of a task or persona that the data does not have"),
    "gold_of_left_out_task": ("left out", "gold of a task that was left out"),
    "gold_of_left_out_persona": ("left out", "gold of a persona that was left out"),
    "second_gold": ("left out", "second gold of a pair"),
    "option_unusable": ("left out", "option of an IN3 detail that says nothing, or is cut text"),
    "detail_without_options": ("left out", "IN3 detail that nobody can have"),
    "detail_malformed": ("left out", "IN3 detail without description or importance"),
    "vague_without_details": ("left out", "vague IN3 task of which nothing can be asked"),
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

# kind -> (level, what its share is a share of, what it means)
CHECK_KINDS: dict[str, tuple[Level, str, str]] = {
    "task_in_two_splits": ("error", "tasks", "same text in two splits: the test is no test"),
    "persona_in_two_splits": ("error", "personas", "same text in two splits: the test is no test"),
    "persona_nearly_in_two_splits": ("error", "personas", "nearly the same text in two splits"),
    "task_nearly_in_two_splits": ("warning", "tasks", "asks nearly the same as another split's"),
    "unusable_record": ("warning", "golds", "row that the loader leaves out"),
    "duplicate_task": ("warning", "tasks", "same text as another of its split"),
    "duplicate_persona": ("warning", "personas", "same text as another of its split"),
    "duplicate_gold": ("warning", "golds", "same text as another gold"),
    "near_duplicate_task": ("warning", "tasks", "asks nearly the same as another of its split"),
    "near_duplicate_persona": ("warning", "personas", "nearly the same text as another"),
    "near_duplicate_gold": ("warning", "golds", "nearly the same text as another gold"),
    "ignores_persona": ("warning", "golds", "tells no more of its persona than of the others"),
    "unneeded_facts": ("warning", "golds", "tells facts that the task does not need"),
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


class Case(NamedTuple):
    """One record or file that is not as it should be."""

    where: str
    detail: str


@dataclass
class Cases:
    """Cases by kind: counted, and listed while there are not too many."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[Case]] = field(default_factory=dict)

    def add(self, kind: str, where: str, detail: str = "", *, count: int = 1) -> None:
        """One case; `count` where it stands for many."""
        self.counts[kind] += count
        listed = self.listed.setdefault(kind, [])
        if len(listed) < MAX_LISTED:
            listed.append(Case(where, detail))

    def listed_json(self, kind: str) -> list[dict[str, str]]:
        return [case._asdict() for case in self.listed[kind]]


@dataclass
class ImportReport(Cases):
    """Everything that an import found (of IMPORT_KINDS), and what it wrote."""

    source: str = ""
    source_format: str = ""
    # split -> {"tasks": 250, "personas": 50, "facts": 310, "golds": 0}
    written: dict[str, Counter[str]] = field(default_factory=dict)

    def wrote(self, split: str, what: str, count: int = 1) -> None:
        self.written.setdefault(split, Counter())[what] += count

    def num(self, action: Action) -> int:
        """How many cases were treated so."""
        return sum(n for kind, n in self.counts.items() if IMPORT_KINDS[kind][0] == action)

    def kinds(self) -> list[str]:
        """The kinds found, in the order of IMPORT_KINDS: what was left out first."""
        return sorted(self.counts, key=list(IMPORT_KINDS).index)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "format": self.source_format,
            "written": {split: dict(counts) for split, counts in self.written.items()},
            "blemishes": [
                {
                    "kind": kind,
                    "action": IMPORT_KINDS[kind][0],
                    "meaning": IMPORT_KINDS[kind][1],
                    "count": self.counts[kind],
                    "listed": self.listed_json(kind),
                }
                for kind in self.kinds()
            ],
        }


@dataclass
class Finding:
    """All cases of one kind."""

    kind: str
    of: int  # how many records could have been found
    count: int = 0
    limit: float | None = None
    cases: list[Case] = field(default_factory=list)

    @property
    def exceeded(self) -> bool:
        """Whether the user's limit is exceeded: an int is a count, a float a share."""
        if self.limit is None:
            return False
        return self.count > self.limit if isinstance(self.limit, int) else self.share > self.limit

    @property
    def level(self) -> Level:
        return "error" if self.exceeded else CHECK_KINDS[self.kind][0]

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "level": self.level,
            "meaning": CHECK_KINDS[self.kind][2],
            "count": self.count,
            "of": self.of,
            "share": round(self.share, 6),
            "limit": self.limit,
            "cases": [case._asdict() for case in self.cases],
        }


def findings_of(
    cases: Cases, totals: Mapping[str, int], limits: Mapping[str, float]
) -> list[Finding]:
    """What a check found, errors first. `totals`: how many tasks, personas, ... there are."""
    found = [
        Finding(kind, totals[CHECK_KINDS[kind][1]], count, limits.get(kind), cases.listed[kind])
        for kind, count in cases.counts.items()
    ]
    order = list(CHECK_KINDS)
    return sorted(found, key=lambda f: (LEVELS.index(f.level), order.index(f.kind)))


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """ "KIND=LIMIT" each: a whole number is a count, a decimal between 0 and 1 a share.

    Raises DataError naming the known kinds.
    """
    limits: dict[str, float] = {}
    for text in texts:
        kind, _, value = text.partition("=")
        if kind not in CHECK_KINDS:
            raise DataError(f"--max {text}: no such kind; known: {', '.join(CHECK_KINDS)}")
        if re.fullmatch(r"\d+", value):
            limits[kind] = int(value)
        elif re.fullmatch(r"0?\.\d+|1\.0*|0\.", value):
            limits[kind] = float(value)
        else:
            raise DataError(
                f"--max {text}: expected a count such as {kind}=3 or a share such as {kind}=0.05"
            )
    return limits
