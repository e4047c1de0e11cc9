"""The STaR-GATE authors' layout, as rows for the cleaner.

    prompts/SPLIT.json          ["How do I ...", ...]
    personas/SPLIT.json         ["I'm LENNOX. ...", ...]      personas/SPLIT_NAMES.json  ["Lennox"]
    gold-responses/SPLIT.json   {"prompt-3 persona-0": ["Hello Lennox, ..."], ...}

Prompt 3 of split A becomes the task "A-prompt-3", persona 0 the persona "A-persona-0": the numbers
stay those of the files, also where a record is left out.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stargate.data.findings import ImportReport
from stargate.data.reading import json_content
from stargate.data.rows import RawGold, RawPersona, RawTask
from stargate.errors import DataError

_PROMPTS, _PERSONAS, _GOLDS = "prompts", "personas", "gold-responses"
_NAMES = "_NAMES"
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_KEY = re.compile(r"prompt-(\d{1,9}) persona-(\d{1,9})")
_LOOSE_KEY = re.compile(r"\s*prompt[\s_-]*(\d{1,9})[\s,;:]*persona[\s_-]*(\d{1,9})\s*", re.I)


def read_official(
    folder: Path, report: ImportReport
) -> tuple[Iterator[RawTask], Iterator[RawPersona], Iterator[RawGold]]:
    """Tasks, personas and golds of every split. Raises DataError where a file is no JSON."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    splits = _splits(folder, report)
    if not splits:
        raise DataError(
            f"{folder}: has neither {_PROMPTS}/*.json nor {_PERSONAS}/*.json "
            "(the layout of --format star-gate)"
        )
    return (
        (task for split in splits for task in _tasks(folder, split, report)),
        (persona for split in splits for persona in _people(folder, split, report)),
        (gold for split in splits for gold in _gold_texts(folder, split, report)),
    )


def _splits(folder: Path, report: ImportReport) -> list[str]:
    found: set[str] = set()
    for part in (_PROMPTS, _PERSONAS, _GOLDS):
        for file in sorted((folder / part).glob("*.json")):
            if file.stem.endswith(_NAMES):
                continue
            if _SPLIT.fullmatch(file.stem):
                found.add(file.stem)
            else:
                report.add("unread_file", f"{part}/{file.name}", "not a name of a split")
    splits = sorted(found)
    for split in splits:
        for part in (f"{_PROMPTS}/{split}", f"{_PERSONAS}/{split}", f"{_GOLDS}/{split}"):
            if not (folder / f"{part}.json").is_file():
                report.add("missing_part", f"{part}.json")
    return splits


def _tasks(folder: Path, split: str, report: ImportReport) -> Iterator[RawTask]:
    for where, number, text in _list(folder, f"{_PROMPTS}/{split}.json", report):
        yield RawTask(where, f"{split}-prompt-{number}", text, split)


def _people(folder: Path, split: str, report: ImportReport) -> Iterator[RawPersona]:
    part = f"{_PERSONAS}/{split}.json"
    if not (folder / part).is_file():
        return
    names_part = f"{_PERSONAS}/{split}{_NAMES}.json"
    if not (folder / names_part).is_file():
        report.add("missing_part", names_part)
    names = [name for _, _, name in _list(folder, names_part, report)]
    people = list(_list(folder, part, report))
    if names and len(names) != len(people):
        report.add("names_count_differs", names_part, f"{len(names)} for {len(people)} personas")
    for where, number, text in people:
        name = names[number] if number < len(names) else None
        yield RawPersona(where, f"{split}-persona-{number}", text, split, name)


def _gold_texts(folder: Path, split: str, report: ImportReport) -> Iterator[RawGold]:
    part = f"{_GOLDS}/{split}.json"
    if not (folder / part).is_file():
        return
    keys: Counter[str] = Counter()  # a name that stands twice is lost in a dict

    def counted(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys.update(key for key, _ in items)
        return dict(items)

    golds = json_content(folder / part, counted)
    if not isinstance(golds, dict):
        report.add("row_malformed", part, f"a {type(golds).__name__}, not an object: no gold read")
        return
    for key in golds:
        if keys[key] > 1:
            report.add("repeated_gold_key", f"{part} {key}", f"{keys[key]} times")
    for key, value in golds.items():
        where = f"{part} {key}"
        found = _KEY.fullmatch(key)
        if found is None and (found := _LOOSE_KEY.fullmatch(key)) is not None:
            report.add("odd_gold_key", where)
        if found is None:
            report.add("malformed_gold_key", where)
            continue
        task, persona = (
            f"{split}-{k}-{int(n)}"
            for k, n in zip(("prompt", "persona"), found.groups(), strict=True)
        )
        yield RawGold(where, task, persona, _one_text(value, where, report))


def _one_text(value: Any, where: str, report: ImportReport) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        report.add("several_gold_texts", where, f"{len(value)} texts")
    return value[0] if value else None


def _list(folder: Path, part: str, report: ImportReport) -> Iterator[tuple[str, int, Any]]:
    """(where, number, element) of a JSON list; nothing if the file is missing."""
    if not (folder / part).is_file():
        return
    elements = json_content(folder / part)
    if not isinstance(elements, list):
        report.add("row_malformed", part, f"a {type(elements).__name__}, not a list: not read")
        return
    for number, element in enumerate(elements):
        yield f"{part}[{number}]", number, element
