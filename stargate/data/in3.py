"""IN3 (Intention-in-Interaction, arXiv 2402.09205) as rows for the cleaner.

    {"task", "vague", "missing_details": [{"description", "importance", "inquiry", "options"}]}
        vague -> a task, and persons who ask it: each detail with one of its options is a fact
        clear -> a task that needs no question, and one person who asks it

A person is drawn by seed and asks one task only (`task_id`): options are dealt out in turn, so that
the persons of a task differ wherever they can. The gold is the plain statement of what the person
wants, made of the details, the most important first; no model writes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from stargate.data.findings import ImportReport
from stargate.data.reading import Found, file_rows
from stargate.data.rows import RawGold, RawPersona, RawTask
from stargate.seeds import derive_seed

# Given names of many places; persons of one task have different ones.
_NAMES = (
    *("Ada", "Ben", "Chiara", "Dario", "Esther", "Felix", "Grete", "Hugo", "Irma", "Jonas"),
    *("Kenza", "Leo", "Mina", "Nuno", "Olga", "Pavel", "Quinn", "Runa", "Sami", "Tilda"),
    *("Umut", "Vera", "Wim", "Xenia", "Yara", "Zeno"),
)
# Options that say nothing about a person.
_EMPTY = frozenset({"other", "others", "none", "not sure", "no preference", "no preferences"})
# A longer option is a piece of running text that was cut at its commas.
_MAX_OPTION = 80
# How rows are shared out where nobody says: every fifth is for the test.
DEFAULT_SPLITS = ("A", "B", "A", "B", "test")


@dataclass(frozen=True, slots=True)
class _Detail:
    """One missing detail. `options` are what a person may want; at least one."""

    description: str
    importance: int
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class In3Source:
    """How many persons ask each vague task, and what they are drawn by."""

    num_persons: int = 4
    seed: int = 0


def read_in3(
    file: Path, report: ImportReport, source: In3Source, splits: Iterator[str | None]
) -> tuple[list[RawTask], list[RawPersona], list[RawGold]]:
    """Tasks, persons and golds of one file of IN3.

    `splits` are those of the rows in turn. Raises DataError where the file can't be read.
    """
    tasks: list[RawTask] = []
    persons: list[RawPersona] = []
    golds: list[RawGold] = []
    for number, (where, row) in enumerate(_rows(file_rows(file, "jsonl", report), report)):
        split = next(splits, None)
        if split is None:
            report.add("row_beyond_splits", where)
            continue
        id, details = f"in3-{number:04}", _details(row, where, report)
        if row["vague"] and not details:
            report.add("vague_without_details", where)
            continue
        tasks.append(RawTask(where, id, row["task"], split, row["vague"]))
        if not row["vague"]:
            name = _names(source.seed, id)[0]
            facts = ["I have said all that matters."]
            text = f"{name} asks for this and has said all that matters: {row['task']}"
            persons.append(RawPersona(where, f"{id}-0", text, split, name, facts, task_id=id))
            continue
        for person, gold in _people(row["task"], id, where, split, details, source):
            persons.append(person)
            golds.append(gold)
    return tasks, persons, golds


def _rows(found: Found, report: ImportReport) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, row in found:
        if not isinstance(row, Mapping) or not isinstance(row.get("task"), str):
            report.add("row_malformed", where, "no task")
        elif not isinstance(row.get("vague"), bool):
            report.add("row_malformed", where, f"vague is {row.get('vague')!r}")
        else:
            yield where, row


def _details(row: Mapping[str, Any], where: str, report: ImportReport) -> list[_Detail]:
    """The usable details, the most important first."""
    found: list[_Detail] = []
    for number, one in enumerate(row.get("missing_details") or ()):
        place = f"{where} missing_details[{number}]"
        description = one.get("description") if isinstance(one, Mapping) else None
        importance = str(one.get("importance")) if isinstance(one, Mapping) else ""
        if not isinstance(description, str) or importance not in ("1", "2", "3"):
            report.add("detail_malformed", place)
            continue
        options = _options(one.get("options"), place, report)
        if options:
            found.append(_Detail(description.strip().rstrip("."), int(importance), options))
        else:
            report.add("detail_without_options", place)
    return sorted(found, key=lambda detail: -detail.importance)


def _options(value: Any, where: str, report: ImportReport) -> tuple[str, ...]:
    options: dict[str, None] = {}
    for option in value if isinstance(value, list) else ():
        text = option.strip().rstrip(".") if isinstance(option, str) else ""
        if 1 < len(text) <= _MAX_OPTION and "\n" not in text and text.lower() not in _EMPTY:
            options[text] = None
        else:
            report.add("option_unusable", where, str(option)[:40])
    return tuple(options)


def _people(
    task: str, id: str, where: str, split: str, details: Sequence[_Detail], source: In3Source
) -> Iterator[tuple[RawPersona, RawGold]]:
    names = _names(source.seed, id)
    dealt = []
    for number, detail in enumerate(details):
        options = list(detail.options)
        Random(derive_seed(source.seed, id, number)).shuffle(options)
        dealt.append(options)
    for number in range(source.num_persons):
        name = names[number % len(names)]
        wanted = [options[number % len(options)] for options in dealt]
        facts = [
            f"{detail.description}: {option}."
            for detail, option in zip(details, wanted, strict=True)
        ]
        person = RawPersona(
            where,
            f"{id}-{number}",
            f"{name} asks for this: {task} What {name} has in mind: {' '.join(facts)}",
            split,
            name,
            facts,
            importance=[detail.importance for detail in details],
            task_id=id,
        )
        gold = f"This is what you would like: {task} And this is how you want it. {' '.join(facts)}"
        yield person, RawGold(where, id, person.id, gold, list(range(len(facts))))


def _names(seed: int, id: str) -> list[str]:
    names = list(_NAMES)
    Random(derive_seed(seed, id, "names")).shuffle(names)
    return names
