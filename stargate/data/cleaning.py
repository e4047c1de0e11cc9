"""From rows as they were found to records that a dataset folder takes, with every change reported.

    reader -> RawTask, RawPersona, RawGold -> Cleaner -> Dataset: tasks, personas, golds
                                                  \\-> ImportReport

A reader never judges: values are of any type here. The cleaner mends, leaves out or notes, and says
so. Split discipline: a task or persona whose text stands in two splits is kept in one of them only,
in the test split if that is one of the two.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from stargate.data.dataset import Dataset, origin_holds
from stargate.data.findings import ImportReport
from stargate.data.rows import RawGold, RawPersona, RawTask
from stargate.data.text import (
    FIRST_PERSON,
    same_text_key,
    sentence_spans,
    tidy,
    without_controls,
    word_set,
    words,
)
from stargate.types import Persona, Task

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NOT_ID = re.compile(r"[^A-Za-z0-9._-]+")
# What UTF-8 looks like after it was read as Latin-1 or Windows-1252, and the replacement character.
_BROKEN = re.compile("\u00e2\u20ac|\u00c3[\u0080-\u00bf\u2018-\u2122]|\ufffd")
_QUESTION = re.compile(
    r"(what|how|why|when|where|who|which|is|are|can|could|do|does|should|will|would)\b", re.I
)
_INTRODUCTION = word_set("i i'm am meet my name is this hi hello call me the here's a an")
_NAME_IN_TEXT = re.compile(
    r"(?:\bI['\u2019]m|\bI am|\b[Mm]y name is|\bMeet|\bThis is)\s+"
    r"([^\W\d_][\w'\u2019-]*(?:\s+[A-Z][\w'\u2019-]*){0,2})"
)
# A profile tells its person's name within so many characters, or not at all.
_NAME_WITHIN = 80


_Raw = TypeVar("_Raw", RawTask, RawPersona)


class _Ids:
    """The ids of one kind of records."""

    def __init__(self) -> None:
        self.written: dict[str, str] = {}  # the id as it was found -> under which it was written
        self.left_out: set[str] = set()
        self._taken: set[str] = set()

    def written_as(self, found: str, fallback: str) -> str:
        """A new id, as found as far as ids can be so."""
        id = found if _ID.fullmatch(found) else _NOT_ID.sub("-", found).strip("._-")[:80]
        id = base = id or fallback
        number = 2
        while id in self._taken:
            id, number = f"{base[:80]}-{number}", number + 1
        self._taken.add(id)
        self.written[found] = id
        return id


@dataclass
class Cleaner:
    """Cleans one data set into `data`. Call tasks, then personas, then golds."""

    report: ImportReport
    keep_split: str = "test"  # which split keeps a text that stands in several
    data: Dataset = field(default_factory=lambda: Dataset(""))
    _ids: dict[str, _Ids] = field(default_factory=lambda: {"task": _Ids(), "persona": _Ids()})

    def tasks(self, rows: Iterable[RawTask]) -> dict[str, Task]:
        """The usable tasks, by id, in the order found."""
        ready = [row for raw in rows if (row := self._prepare(raw, "task")) is not None]
        for raw in self._without_repeats(ready, "task"):
            needs = self._flag(raw.needs_question, raw.where)
            gold = self._gold_for_everybody(raw, needs)
            self.data.tasks[raw.id] = Task(raw.id, raw.text, raw.split, needs, gold)
            self.report.wrote(raw.split, "tasks")
            if raw.text.endswith(".") and _QUESTION.match(raw.text):
                self.report.add("question_without_mark", raw.where, raw.text)
        return self.data.tasks

    def personas(self, rows: Iterable[RawPersona]) -> dict[str, Persona]:
        """The usable personas, by id, in the order found; each has facts."""
        ready = []
        for raw in rows:
            if (row := self._prepare(raw, "persona")) is None:
                continue
            if name := self._name(row):
                ready.append(replace(row, name=name))
            else:
                self._leave_out("persona", row.id, "persona_without_name", row.where)
        names: dict[tuple[str, str | None, str], str] = {}
        for raw in self._without_repeats(ready, "persona"):
            try:
                task_id = self._only_task(raw)
            except LookupError:
                self._leave_out("persona", raw.id, "persona_of_unknown_task", raw.where)
                continue
            other = names.setdefault((raw.split, task_id, raw.name.casefold()), raw.where)
            if other != raw.where:
                self.report.add("repeated_name", raw.where, f"{raw.name}, also {other}")
            facts, origins = self._facts(raw)
            importance = self._importance(raw, facts)
            self.data.personas[raw.id] = Persona(
                raw.id, raw.name, raw.text, raw.split, facts, importance, task_id
            )
            if origins:
                self.data.fact_origins[raw.id] = origins
            self.report.wrote(raw.split, "personas")
            self.report.wrote(raw.split, "facts", len(facts))
        return self.data.personas

    def golds(self, rows: Iterable[RawGold]) -> None:
        """Adds the usable golds, and notes what has none in a split that has any."""
        for raw in rows:
            pair = self._pair(raw)
            if pair is None:
                continue
            text = self._text(raw.text, raw.where)
            if text is None:
                self.report.add("row_malformed", raw.where, f"text is {_kind(raw.text)}")
            elif not text:
                self.report.add("empty_gold", raw.where)
            elif pair in self.data.golds:
                self.report.add("second_gold", raw.where)
            else:
                task, persona = self.data.tasks[pair[0]], self.data.personas[pair[1]]
                if task.split != persona.split:
                    detail = f"{task.split} and {persona.split}"
                    self.report.add("gold_across_splits", raw.where, detail)
                self.report.wrote(task.split, "golds")
                self.data.golds[pair] = (text, self._facts_used(raw, persona))
        with_golds = {self.data.tasks[task].split for task, _ in self.data.golds}
        for split in filter(with_golds.__contains__, self.data.splits):
            for pair_id in self.data.without_gold(split):
                self.report.add("pair_without_gold", pair_id)

    def _prepare(self, raw: _Raw, kind: str) -> _Raw | None:
        """The row with a usable text, split and id, or None after saying why not."""
        text = self._text(raw.text, raw.where)
        if text is None:
            self._leave_out(kind, raw.id, "row_malformed", raw.where, f"text is {_kind(raw.text)}")
        elif not text:
            self._leave_out(kind, raw.id, f"empty_{kind}", raw.where)
        elif not isinstance(raw.split, str) or not _ID.fullmatch(raw.split):
            detail = "none" if raw.split is None else repr(raw.split)
            self._leave_out(kind, raw.id, "no_split", raw.where, detail)
        else:
            id = self._id(raw, kind)
            return None if id is None else replace(raw, id=id, text=text)
        return None

    def _text(self, value: Any, where: str) -> str | None:
        """The tidy text; None if the value is not text."""
        if value is None:
            return ""
        if not isinstance(value, str):
            return None
        text = tidy(value)
        plain = value.replace("\r\n", "\n").replace("\r", "\n")
        visible = without_controls(plain)
        if visible != plain and text:
            self.report.add("control_characters", where)
        if text and text != visible:
            self.report.add("odd_spacing", where, _spacing_example(visible))
        if broken := _BROKEN.search(text):
            at = broken.start()
            self.report.add("broken_encoding", where, text[max(0, at - 20) : at + 20])
        return text

    def _id(self, raw: _Raw, kind: str) -> str | None:
        ids = self._ids[kind]
        numbered = f"{raw.split[:60]}-{kind}-{len(ids.written)}"
        given = isinstance(raw.id, str | int) and not isinstance(raw.id, bool)
        found = str(raw.id) if given and raw.id != "" else numbered
        if found in ids.written:
            self.report.add("repeated_id", raw.where, repr(found))
            return None
        id = ids.written_as(found, numbered)
        if id != found:
            self.report.add("bad_id", raw.where, f"{found[:60]!r}: now {id}")
        return id

    def _without_repeats(self, rows: Sequence[_Raw], kind: str) -> Iterator[_Raw]:
        """The rows whose text stands nowhere else, or is the one that is kept."""
        kept: dict[str, _Raw] = {}
        for row in sorted(rows, key=lambda row: row.split != self.keep_split):  # stable
            kept.setdefault(same_text_key(row.text), row)
        for row in rows:
            winner = kept[same_text_key(row.text)]
            if winner.id == row.id:
                yield row
                continue
            same_split = winner.split == row.split
            blemish = f"duplicate_{kind}" if same_split else f"{kind}_in_two_splits"
            self._leave_out(
                kind, row.id, blemish, row.where, f"kept: {winner.where}: {_short(row.text)}"
            )

    def _leave_out(self, kind: str, id: Any, blemish: str, where: str, detail: str = "") -> None:
        self.report.add(blemish, where, detail)
        self._ids[kind].left_out.add(str(id))

    def _name(self, raw: RawPersona) -> str:
        """The persona's name: the one beside it, unless its text tells another; "" if none."""
        given = tidy(raw.name) if isinstance(raw.name, str) else ""
        in_text = set(words(raw.text))
        if given and set(words(given)) & in_text:
            return given
        named = _name_in_text(raw.text)
        if given and not named:
            self.report.add("name_unconfirmed", raw.where, given)
            return given
        if named:
            kind = "name_not_in_text" if given else "name_missing"
            detail = f"{given!r} is not in the text; taken: {named}" if given else f"taken: {named}"
            self.report.add(kind, raw.where, detail)
        return named

    def _facts(self, raw: RawPersona) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The persona's facts with the origin of each; the profile's sentences if it has none."""
        given = raw.facts if isinstance(raw.facts, (list, tuple)) else []
        if raw.facts is not None and not isinstance(raw.facts, (list, tuple)):
            self.report.add("bad_value", raw.where, f"facts is {_kind(raw.facts)}")
        if any(not isinstance(fact, str) or not fact.strip() for fact in given):
            self.report.add("bad_value", raw.where, "facts are not all texts: none is taken")
            given = []
        if given:
            facts = tuple(self._text(fact, f"{raw.where} facts") or "" for fact in given)
            return facts, self._given_origins(raw, facts)
        spans = fact_spans(raw.text, raw.name)
        facts = tuple(raw.text[start:end] for start, end in spans)
        self.report.add("facts_from_profile", raw.where, f"{len(facts)} facts")
        if len(spans) < len(_joined_spans(raw.text)):
            self.report.add("introduction_left_out", raw.where, _short(raw.text, 40))
        if facts and not FIRST_PERSON & set(words(raw.text)):
            self.report.add("facts_in_third_person", raw.where, _short(facts[0]))
        return facts, tuple(f"sentence:{start}-{end}" for start, end in spans)

    def _given_origins(self, raw: RawPersona, facts: tuple[str, ...]) -> tuple[str, ...]:
        """The origins that came with the facts, where they are still true; else "given"."""
        found = raw.fact_origins
        if found is None or found == [] or found == ():
            return ()
        if not isinstance(found, (list, tuple)) or len(found) != len(facts):
            self.report.add("bad_value", raw.where, "fact_origins do not fit the facts")
            return ()
        origins = []
        for fact, origin in zip(facts, found, strict=True):
            if not origin_holds(origin, fact, raw.text):
                self.report.add("bad_value", raw.where, f"origin {str(origin)[:40]!r} is not true")
                origin = "given"
            origins.append(origin)
        return tuple(origins)

    def _importance(self, raw: RawPersona, facts: tuple[str, ...]) -> tuple[int, ...]:
        found = _whole_numbers(raw.importance, range(1, 4))
        if found is not None and len(found) in (0, len(facts)):
            return found
        self.report.add("bad_value", raw.where, "importance does not fit the facts")
        return ()

    def _only_task(self, raw: RawPersona) -> str | None:
        """The id of the one task that this persona asks; None: all. Raises LookupError."""
        if raw.task_id is None:
            return None
        task = self.data.tasks[self._ids["task"].written[str(raw.task_id)]]
        return task.id

    def _gold_for_everybody(self, raw: RawTask, needs_question: bool) -> str | None:
        gold = self._text(raw.gold, raw.where)
        if gold and needs_question:
            self.report.add("bad_value", raw.where, "a gold for everybody, but it needs a question")
        return gold if gold and not needs_question else None

    def _pair(self, raw: RawGold) -> tuple[str, str] | None:
        """The ids of a gold's task and persona, or None after saying why it has none."""
        pair = []
        kept: dict[str, Collection[str]] = {"task": self.data.tasks, "persona": self.data.personas}
        for kind, found in (("task", str(raw.task_id)), ("persona", str(raw.persona_id))):
            ids = self._ids[kind]
            id = ids.written.get(found)
            if id is None or id not in kept[kind]:
                unknown = ids.left_out.isdisjoint((found, id))
                why = "gold_out_of_range" if unknown else f"gold_of_left_out_{kind}"
                self.report.add(why, raw.where, f"{kind} {found}")
                return None
            pair.append(id)
        return pair[0], pair[1]

    def _facts_used(self, raw: RawGold, persona: Persona) -> tuple[int, ...]:
        used = _whole_numbers(raw.facts_used, range(len(persona.facts)))
        if used is None:
            self.report.add("facts_used_unusable", raw.where, f"{str(raw.facts_used)[:60]}")
        return used or ()

    def _flag(self, value: Any, where: str) -> bool:
        if value is None or isinstance(value, bool):
            return value is not False
        if str(value).strip().lower() in ("true", "1", "yes", ""):
            return True
        if str(value).strip().lower() in ("false", "0", "no"):
            return False
        self.report.add("bad_value", where, f"needs_question is {str(value)[:40]!r}: true")
        return True


def fact_spans(text: str, name: str = "") -> list[tuple[int, int]]:
    """Where the sentences stand that can serve as facts.

    A sentence that only tells the name ("Meet REECE.") is none; a short question ("Friends?") goes
    with the sentence that answers it.
    """
    introduction = _INTRODUCTION | set(words(name))
    return [
        (start, end)
        for start, end in _joined_spans(text)
        if not set(words(text[start:end])) <= introduction
    ]


def _joined_spans(text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for start, end in sentence_spans(text):
        if spans and text[: spans[-1][1]].endswith("?"):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _name_in_text(text: str) -> str:
    """The name with which a profile introduces its person, or ""."""
    for found in _NAME_IN_TEXT.finditer(text[:_NAME_WITHIN]):
        if found.group(1)[0].isupper():
            return _title_case(found.group(1))
    return ""


def _title_case(name: str) -> str:
    """ "REECE" -> "Reece"; a name in mixed case stays. Words in capitals after it are kept only if
    the name is in capitals too.
    """
    first, *more = name.split()
    if not first.isupper():
        return " ".join([first, *(word for word in more if not word.isupper())])
    return " ".join(word.title() for word in [first, *(word for word in more if word.isupper())])


def _spacing_example(text: str) -> str:
    """A few characters around the first odd blank."""
    odd = re.search(r"^\s|[^\S\n]{2,}|[^\S\n ]|[^\S\n]\n|\n[^\S\n]|\n{3,}|\s$|\r", text)
    at = odd.start() if odd else 0
    return repr(text[max(0, at - 15) : at + 15])


def _short(text: str, limit: int = 70) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}, not a text"


def _whole_numbers(value: Any, allowed: range) -> tuple[int, ...] | None:
    """The numbers of a list; () for nothing, None if it is not a list of allowed ones."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)) and all(type(i) is int and i in allowed for i in value):
        return tuple(value)
    return None
