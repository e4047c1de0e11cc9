"""What a run counts while it goes: seconds by stage, tokens by role, and every dropped record.

Nothing is dropped in silence: `drop` counts under its reason and keeps the first few places to
show.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stargate.errors import RecordDropped
from stargate.types import Dialogue, StopReason

# How many dropped records are named on the screen per reason; all are counted.
_EXAMPLES_PER_REASON = 3


@dataclass
class Counters:
    """Counters of one run. Stages that run side by side each get their own wall time."""

    stage_seconds: dict[str, float] = field(default_factory=dict)
    generated_tokens: Counter[str] = field(default_factory=Counter)
    dialogues: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_examples: dict[str, list[str]] = field(default_factory=dict)
    restarts: Counter[str] = field(default_factory=Counter)  # actors that died, by role
    longest_restart: dict[str, float] = field(default_factory=dict)  # seconds, by role
    resent: Counter[str] = field(default_factory=Counter)  # requests sent again, by role
    joined: Counter[str] = field(default_factory=Counter)  # engines added meanwhile, by role
    left: Counter[str] = field(default_factory=Counter)  # engines taken out meanwhile, by role

    def __post_init__(self) -> None:
        self._open: dict[str, tuple[int, float]] = {}  # stages: how many at once, since when

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the wall time of the block to a stage; of several at once, that during which any of
        them runs.
        """
        num_open, since = self._open.get(name, (0, time.perf_counter()))
        self._open[name] = (num_open + 1, since)
        try:
            yield
        finally:
            num_open, since = self._open.pop(name)
            if num_open > 1:
                self._open[name] = (num_open - 1, since)
            else:
                seconds = time.perf_counter() - since
                self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + seconds

    def drop(self, problem: RecordDropped) -> None:
        """Counts one dropped record."""
        self.dropped[problem.reason] += 1
        examples = self.dropped_examples.setdefault(problem.reason, [])
        if len(examples) < _EXAMPLES_PER_REASON:
            examples.append(str(problem))

    def restarted(self, role: str, seconds: float) -> None:
        """Counts an actor that died and was replaced within `seconds`."""
        self.restarts[role] += 1
        self.longest_restart[role] = max(seconds, self.longest_restart.get(role, 0.0))

    def finished_dialogue(self, scope: str, dialogue: Dialogue) -> int:
        """Counts a dialogue and its sampled tokens; returns their number."""
        tokens = generated_tokens(dialogue)
        self.dialogues[scope] += 1
        self.generated_tokens[scope] += tokens
        return tokens


def generated_tokens(dialogue: Dialogue) -> int:
    """Tokens that the engines sampled for a dialogue.

    Fixed answers and those of an API were not, and do not count.
    """
    return sum(
        len(turn.question_ids)
        + (0 if turn.answer_stop is StopReason.FIXED else len(turn.answer_ids or ()))
        for turn in dialogue.turns
    )
