"""A dataset folder: who asks (personas), what (tasks) and the ideal response for each pair (golds).

    tasks.jsonl     {"id", "text", "split", "needs_question"?, "gold"?}
    personas.jsonl  {"id", "name", "text", "split", "facts"?, "fact_origins"?, "importance"?,
                     "task_id"?}
    golds.jsonl     {"task_id", "persona_id", "text", "facts_used"?}

Every persona of a split asks every task of it, one with a `task_id` that one only. A task that
needs no question may have its gold beside it: the answer for everybody. `importance` says for each
fact how much it matters, 1 to 3.

`fact_origins` says for each fact where it came from: "given" (it came with the data),
"sentence:START-END" (it is these characters of the profile text) or "extracted" (a model took it
out of the text, and it was checked to be stated there).

Each file may be Parquet (same columns) instead. A malformed file is an error that names file, line
and key; a gold that can't be used (empty, unknown task or persona, two for one pair) is dropped,
counted and named.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stargate.config.files import shown_value
from stargate.config.run import DataConfig, SplitLimit
from stargate.data.reading import KINDS, jsonl_rows, parquet_rows
from stargate.errors import DataError
from stargate.types import Pair, Persona, Task

# Data sets that are packaged, by name: folders beside this file.
PACKAGED = ("starter", "asking")

_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
_Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
_Strip = AfterValidator(str.strip)
_Origin = Annotated[str, Field(pattern=r"^(given|extracted|sentence:\d+-\d+)$")]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _TaskRow(_Row):
    id: _Id
    text: Annotated[_Text, _Strip]
    split: _Id
    needs_question: bool = True
    gold: Annotated[_Text, _Strip] | None = None

    @model_validator(mode="after")
    def _gold_for_everybody(self) -> Self:
        if self.gold is not None and self.needs_question:
            raise ValueError("only a task with needs_question false has one gold for everybody")
        return self


class _PersonaRow(_Row):
    id: _Id
    name: Annotated[_Text, _Strip]
    text: Annotated[_Text, _Strip]
    split: _Id
    facts: tuple[_Text, ...] = ()
    fact_origins: tuple[_Origin, ...] = ()
    importance: tuple[Annotated[int, Field(ge=1, le=3)], ...] = ()
    task_id: _Id | None = None

    @model_validator(mode="after")
    def _importance_fits(self) -> Self:
        if self.importance and len(self.importance) != len(self.facts):
            raise ValueError(
                f"{len(self.facts)} facts but {len(self.importance)} values of importance: one each"
            )
        return self

    @model_validator(mode="after")
    def _origins_fit(self) -> Self:
        if self.fact_origins and len(self.fact_origins) != len(self.facts):
            raise ValueError(
                f"{len(self.facts)} facts but {len(self.fact_origins)} fact_origins: one each"
            )
        for fact, origin in zip(self.facts, self.fact_origins, strict=bool(self.fact_origins)):
            if not origin_holds(origin, fact, self.text):
                raise ValueError(f"origin {origin} of fact {fact[:60]!r} is not where it stands")
        return self


class _GoldRow(_Row):
    task_id: _Id
    persona_id: _Id
    text: Annotated[str, _Strip]
    facts_used: tuple[int, ...] = ()


_AnyRow = TypeVar("_AnyRow", bound=_Row)
_RowWithId = TypeVar("_RowWithId", _TaskRow, _PersonaRow)


@dataclass(frozen=True, slots=True)
class DroppedRecord:
    """One record of a data file that is not used, and why."""

    reason: str
    where: str


@dataclass
class Dataset:
    """Tasks, personas and golds of one folder. `dropped` lists every record that is not used."""

    name: str
    tasks: dict[str, Task] = field(default_factory=dict)
    personas: dict[str, Persona] = field(default_factory=dict)
    # (task id, persona id) -> text, facts used
    golds: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    dropped: list[DroppedRecord] = field(default_factory=list)
    fact_origins: dict[str, tuple[str, ...]] = field(default_factory=dict)  # one per fact

    @property
    def drop_counts(self) -> dict[str, int]:
        return dict(Counter(record.reason for record in self.dropped))

    @property
    def splits(self) -> list[str]:
        """All splits that have a task or a persona, in the order of the files."""
        splits = [task.split for task in self.tasks.values()]
        splits += [persona.split for persona in self.personas.values()]
        return list(dict.fromkeys(splits))

    def tasks_of(self, split: str, *, needing: bool = True) -> list[Task]:
        """The tasks of a split that need a question, or those that need none."""
        of_split = (task for task in self.tasks.values() if task.split == split)
        return [task for task in of_split if task.needs_question == needing]

    def personas_of(self, split: str) -> list[Persona]:
        return [persona for persona in self.personas.values() if persona.split == split]

    def asked(
        self, split: str, limit: SplitLimit | None = None, *, needing: bool = True
    ) -> list[tuple[Task, Persona]]:
        """Who asks what, task by task: the first tasks, and the first personas of each."""
        limit = limit or SplitLimit()
        everybody = [p for p in self.personas_of(split) if p.task_id is None]
        only: dict[str, list[Persona]] = {}
        for persona in self.personas_of(split):
            if persona.task_id is not None:
                only.setdefault(persona.task_id, []).append(persona)
        return [
            (task, persona)
            for task in self.tasks_of(split, needing=needing)[: limit.tasks]
            for persona in [*everybody, *only.get(task.id, ())][: limit.personas]
        ]

    def pairs(self, split: str, limit: SplitLimit | None = None) -> list[Pair]:
        """All pairs of a split that have a gold, task by task.

        Raises DataError when there are none.
        """
        if pairs := self.pairs_with_gold(split, limit):
            return pairs
        known = sorted({task.split for task in self.tasks.values()})
        raise DataError(
            f"{self.name}: split {split!r} has no pair with a gold ({len(self.tasks_of(split))} "
            f"tasks, {len(self.personas_of(split))} personas; splits with tasks: {known})"
        )

    def pairs_with_gold(self, split: str, limit: SplitLimit | None = None) -> list[Pair]:
        """The same; there may be none."""
        return [
            Pair(task, persona, *self.golds[task.id, persona.id])
            for task, persona in self.asked(split, limit)
            if (task.id, persona.id) in self.golds
        ]

    def without_gold(self, split: str) -> list[str]:
        """The pairs of a split that have no gold and need one, as "task:persona"."""
        pairs = [(task.id, persona.id) for task, persona in self.asked(split)]
        return [f"{task}:{persona}" for task, persona in pairs if (task, persona) not in self.golds]

    def plain_pairs(self, split: str, limit: SplitLimit | None = None) -> list[Pair]:
        """Pairs of the tasks that need no question:

        played to see whether one is asked. All such tasks; `limit` counts personas.
        """
        limit = SplitLimit(personas=limit.personas if limit else None)
        pairs = self.asked(split, limit, needing=False)
        return [Pair(task, persona, task.gold) for task, persona in pairs]


def _folder(source: str | Path) -> Path:
    """The folder that a source names; those of PACKAGED come with stargate."""
    return Path(__file__).parent / source if str(source) in PACKAGED else Path(source)


def data_files(source: str | Path) -> list[Path]:
    """The files that are read of the dataset folder that a source names."""
    files = (_file(_folder(source), kind) for kind in KINDS)
    return [file for file in files if file is not None]


def _file(folder: Path, name: str) -> Path | None:
    """The file that holds the tasks, the personas or the golds."""
    files = (folder / f"{name}.{ending}" for ending in ("jsonl", "parquet"))
    return next((file for file in files if file.is_file()), None)


def load_dataset(config: DataConfig) -> Dataset:
    """The dataset that a config names. Raises DataError naming file, line and key."""
    dataset = read_dataset(_folder(config.source))
    _check_splits(dataset, [*config.train_splits, config.test_split])
    return dataset


def open_dataset(source: str | Path) -> Dataset:
    """A dataset to look at: a packaged one or a folder, in which parts may be missing.

    Raises DataError.
    """
    folder = _folder(source)
    dataset = read_dataset(folder, partial=True)
    if not (dataset.tasks or dataset.personas):
        raise DataError(
            f"{folder}: has neither tasks nor personas; a dataset folder holds tasks, personas and "
            "golds as .jsonl or .parquet; other formats: stargate data import"
        )
    return dataset


def read_dataset(folder: Path, *, partial: bool = False) -> Dataset:
    """Reads and validates a dataset folder. With `partial`, files may be missing or empty.

    Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such dataset folder (data.source)")
    dataset = Dataset(str(folder))
    for task in _unique(_read(folder, "tasks", _TaskRow, partial)):
        dataset.tasks[task.id] = Task(**task.model_dump())
    for row in _unique(_read(folder, "personas", _PersonaRow, partial)):
        dataset.personas[row.id] = Persona(**row.model_dump(exclude={"fact_origins"}))
        if row.fact_origins:
            dataset.fact_origins[row.id] = row.fact_origins
    for where, gold in _read(folder, "golds", _GoldRow, partial):
        if reason := _gold_problem(gold, dataset):
            place = f"{where} (pair {gold.task_id}:{gold.persona_id})"
            dataset.dropped.append(DroppedRecord(reason, place))
        else:
            dataset.golds[gold.task_id, gold.persona_id] = (gold.text, gold.facts_used)
    return dataset


def _gold_problem(row: _GoldRow, dataset: Dataset) -> str | None:
    if row.task_id not in dataset.tasks:
        return "gold_of_unknown_task"
    if row.persona_id not in dataset.personas:
        return "gold_of_unknown_persona"
    if (row.task_id, row.persona_id) in dataset.golds:
        return "second_gold_of_pair"
    if not row.text:
        return "empty_gold"
    num_facts = len(dataset.personas[row.persona_id].facts)
    if any(not 0 <= index < num_facts for index in row.facts_used):
        return "gold_with_unknown_fact"
    return None


def origin_holds(origin: Any, fact: str, text: str) -> bool:
    """Whether a fact's origin is one, and the fact stands in the profile text where it says."""
    if origin in ("given", "extracted"):
        return True
    span = re.fullmatch(r"sentence:(\d+)-(\d+)", origin) if isinstance(origin, str) else None
    return span is not None and text[int(span[1]) : int(span[2])] == fact


def _check_splits(dataset: Dataset, splits: list[str]) -> None:
    """No task or persona text may stand in two splits: the test would not be one."""
    for kind, records in (("task", dataset.tasks), ("persona", dataset.personas)):
        seen: dict[str, Task | Persona] = {}
        for record in records.values():
            if record.split not in splits:
                continue
            text = " ".join(record.text.lower().split())
            other = seen.setdefault(text, record)
            if other.split != record.split:
                raise DataError(
                    f"{dataset.name}: {kind} {record.id!r} of split {record.split!r} has the same "
                    f"text as {other.id!r} of split {other.split!r}: splits must not share any"
                )


def _unique(rows: Iterator[tuple[str, _RowWithId]]) -> Iterator[_RowWithId]:
    seen: dict[str, str] = {}
    for where, row in rows:
        if row.id in seen:
            raise DataError(f"{where}: id {row.id!r} was used before at {seen[row.id]}")
        seen[row.id] = where
        yield row


def _read(
    folder: Path, name: str, model: type[_AnyRow], partial: bool
) -> Iterator[tuple[str, _AnyRow]]:
    """Yields (where, validated row) of NAME.jsonl or NAME.parquet."""
    if partial and _file(folder, name) is None:
        return
    empty = not partial
    for where, raw in _raw_rows(folder, name):
        empty = False
        try:
            yield where, model.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"]) or "(row)"
            wrong = first["type"] != "value_error"
            got = f", got {shown_value(first['input'])}" if wrong else ""
            raise DataError(f"{where}: {key}: {first['msg']}{got}") from error
    if empty:
        raise DataError(f"{folder}: {name} is empty: at least one row is needed")


def _raw_rows(folder: Path, name: str) -> Iterator[tuple[str, Any]]:
    file = _file(folder, name)
    if file is None:
        raise DataError(
            f"{folder}: has neither {name}.jsonl nor {name}.parquet; other formats: stargate data "
            "import"
        )
    if file.suffix == ".jsonl":
        yield from jsonl_rows(file, str(file))
    else:
        for where, row in parquet_rows(file, str(file)):
            yield where, {k: v for k, v in row.items() if v is not None}
