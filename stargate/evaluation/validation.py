"""When to stop training, by held-out pairs of a train split: no choice looks at a test pair.

held-out pairs (data/held_out.py)
m_t plays them -> RUN/evaluations/validation -> contrast, distinct questions -> go on or stop
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stargate.config.cluster import ValidationConfig
from stargate.errors import DataError
from stargate.evaluation.evaluator import Evaluator
from stargate.evaluation.measures import EVALUATION_FILE
from stargate.evaluation.playing import EvaluationPairs
from stargate.records.store import RunStore
from stargate.run_context import Roles, RunContext
from stargate.types import Pair


@dataclass(frozen=True)
class Judgement:
    """What the held-out pairs say of a checkpoint; `best` is the best version so far.

    `stop` says why training ends; None: it goes on.
    """

    version: int
    contrast: float
    distinct: float | None  # None: it asked nothing
    best: int
    stop: str | None

    def __str__(self) -> str:
        distinct = "" if self.distinct is None else f", {self.distinct:.0%} of questions differ"
        end = f"; training stops: {self.stop}" if self.stop else ""
        return (
            f"m{self.version} on held-out pairs: contrast {self.contrast:.2f} nats{distinct}; "
            f"best so far m{self.best}{end}"
        )


def judge(measured: Mapping[str, Any], version: int, min_distinct: float) -> Judgement:
    """The judgement of m_`version`, by what eval.json says of it and of those before it.

    One that repeats its questions too often is never the best, except for m_0. Raises DataError
    for a checkpoint without a contrast.
    """

    def mean(number: int, name: str) -> float | None:
        value: float | None = measured[f"m{number}"].get(name, {}).get("mean")
        return value

    contrasts = []
    for number in range(version + 1):
        if (contrast := mean(number, "contrast")) is None:
            raise DataError(
                f"schedule.validation: m{number} has no contrast on the held-out pairs; it needs "
                "golds of 3 personas for a task"
            )
        contrasts.append(contrast)
    repeating = {
        number
        for number in range(1, version + 1)
        if (share := mean(number, "distinct_question_rate")) is not None and share < min_distinct
    }
    best = max(set(range(version + 1)) - repeating, key=lambda number: (contrasts[number], -number))
    stop = None
    if version in repeating:
        stop = f"fewer than {min_distinct:.0%} of its questions differ"
    elif best != version:
        stop = f"its contrast is not above m{best}'s {contrasts[best]:.2f} nats"
    distinct = mean(version, "distinct_question_rate")
    return Judgement(version, contrasts[version], distinct, best, stop)


@dataclass(frozen=True)
class Validation:
    """The checkpoints of a run on its held-out pairs, in a folder of their own."""

    config: ValidationConfig
    evaluator: Evaluator
    context: RunContext

    def is_known(self, version: int) -> bool:
        """Whether m_`version` was played and measured."""
        return f"m{version}" in (self.context.store.read_json(EVALUATION_FILE) or {})

    async def checkpoint(self, version: int, roles: Roles) -> None:
        """Plays and measures m_`version`, whose weights the Questioner's engines hold."""
        await self.evaluator.checkpoint(version, roles, self.context)
        self.evaluator.write(self.context.store)

    def judgement(self, version: int) -> Judgement:
        """Of a known version. Raises DataError."""
        measured = self.context.store.read_json(EVALUATION_FILE) or {}
        return judge(measured, version, self.config.min_distinct)


def open_validation(
    pairs: Sequence[Pair], evaluator: Evaluator, context: RunContext
) -> Validation | None:
    """The validation of a run, without a judge and detailed controls; None if none is wanted."""
    config = context.config
    if (wanted := config.schedule.validation) is None:
        return None
    part = config.evaluation
    changes = {
        "judge": None,
        "num_detailed_dialogues": 0,
        "num_other_golds": max(2, part.num_other_golds),  # what a contrast needs
    }
    own = config.model_copy(
        update={
            "evaluation": part.model_copy(update=changes),
            "data": config.data.model_copy(update={"test_split": "validation"}),
        }
    )
    root = context.store.root / "evaluations" / "validation"
    root.mkdir(parents=True, exist_ok=True)
    return Validation(
        wanted,
        replace(evaluator, config=own, pairs=EvaluationPairs(pairs)),
        replace(context, config=own, store=RunStore(root)),
    )
