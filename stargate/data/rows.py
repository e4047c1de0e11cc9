"""Records as a reader found them: values of any type, which the cleaner judges."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RawTask:
    """A task as found. `split` None: the cleaner leaves it out."""

    where: str
    id: Any
    text: Any
    split: Any
    needs_question: Any = True
    gold: Any = None


@dataclass(frozen=True, slots=True)
class RawPersona:
    """A persona as found."""

    where: str
    id: Any
    text: Any
    split: Any
    name: Any = None
    facts: Any = None
    fact_origins: Any = None
    importance: Any = None
    task_id: Any = None


@dataclass(frozen=True, slots=True)
class RawGold:
    """A gold as found; the ids are those of RawTask and RawPersona."""

    where: str
    task_id: Any
    persona_id: Any
    text: Any
    facts_used: Any = None
