"""Dialogues that a run of stargate recorded, kept as texts: any model's tokenizer can be used.

They were played by the embedded model with itself (`cpu_learn`, iteration 0).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stargate.data.dataset import Dataset
from stargate.errors import DataError
from stargate.types import Pair, StopReason, Turn


def read_rows(file: Path, count: int, option: str) -> list[dict[str, Any]]:
    """The first `count` rows. Raises DataError, naming the option, if there are not so many."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not 1 <= count <= len(rows):
        raise DataError(f"{option} must be in 1..{len(rows)}, got {count}")
    return rows[:count]


def pair_of(row: dict[str, Any], data: Dataset) -> Pair:
    """A row's task and persona, with their gold."""
    task, persona = data.tasks[row["task_id"]], data.personas[row["persona_id"]]
    return Pair(task, persona, *data.golds[task.id, persona.id])


def turn_of(
    said: dict[str, str], encode: Callable[[str], list[int]], end: int | None = None
) -> Turn:
    """A turn with the ids that a model would have sampled for its question.

    `end`: the end token; None: the question was cut off. The answer is not sampled: the template
    tokenises it as text.
    """
    ids = tuple(encode(said["question"]))
    stop = StopReason.LENGTH if end is None else StopReason.STOP
    asked = ids if end is None else (*ids, end)
    return Turn(said["question"], asked, stop, said["answer"], (), StopReason.FIXED)
