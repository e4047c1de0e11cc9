"""The seams:

all that the loop knows of the actors. Fakes implement them in unit tests, actors/runtime/clients.py
in a run.
"""

from collections.abc import Sequence
from typing import Protocol

from stargate.types import (
    Answer,
    Dialogue,
    DialoguePlan,
    GenerateRequest,
    Generation,
    Pair,
    PushResult,
    ScoreRequest,
    ScoreResult,
    TrainingExample,
    TrainResult,
    Turn,
)


class Generate(Protocol):
    """Generates one text on some engine replica. Raises EngineError when no replica can."""

    async def __call__(self, request: GenerateRequest) -> Generation: ...


class Ask(Protocol):
    """Asks the question after `turns`. `session` differs from the dialogue's id where it is asked
    for once more. Raises RecordDropped where there is none.
    """

    async def __call__(
        self, plan: DialoguePlan, turns: Sequence[Turn], session: str | None = None
    ) -> Generation: ...


class Roleplay(Protocol):
    """Answers a question in a persona's voice. `turns` are the finished ones before it."""

    async def __call__(
        self, pair: Pair, turns: Sequence[Turn], question: str, *, session: str, seed: int
    ) -> Answer: ...


class Play(Protocol):
    """Plays one planned dialogue to its end, here or in a dialogue worker.

    Many at once; none waits for another. Raises RecordDropped when it can't be finished.
    """

    async def __call__(self, plan: DialoguePlan, /) -> Dialogue: ...


class MatchFacts(Protocol):
    """The index of the fact that answers a question: the nearest one, None if it is not near."""

    async def __call__(self, question: str, facts: Sequence[str]) -> int | None: ...

    async def states(self, text: str, fact: str) -> bool:
        """Whether `text` still states `fact`."""
        ...


class Score(Protocol):
    """Gold log-probs under the frozen m_0. Results come in the order of the requests."""

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]: ...


class Train(Protocol):
    """Trains m_{t+1} on the examples and saves it as a Hugging Face folder.

    Raises DivergenceError.
    """

    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult: ...


class PushWeights(Protocol):
    """Loads a saved model folder into every Questioner engine, under `version`."""

    async def __call__(self, model_dir: str, version: int) -> PushResult: ...
