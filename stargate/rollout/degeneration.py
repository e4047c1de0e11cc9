"""Whether a checkpoint, or the engine that serves it, still speaks.

Empty and looping texts are counted:

    questions and answers as they come -> Degeneration per role -> degeneration.json of the scope
    share over the limits of config.rollout.degeneration -> DivergenceError with the figures

A text is empty when nothing but white space is left of it. It loops when it ran into its token
limit while repeating itself: at least three quarters of the 4-grams of token ids that begin in its
second half stood in it before. A small model does that now and then (SmolLM2-135M as it is: 0.4 %
of its questions), broken weights do it all the time. So a share over many texts counts, never one
text, and a trained checkpoint is also compared with what m_0 did in the same place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stargate.config.run import DegenerationConfig
from stargate.errors import DivergenceError, RecordDropped
from stargate.records.files import make_folder
from stargate.records.store import RunStore
from stargate.types import Dialogue, StopReason

# Under the scope's folder: the counts, for the scopes that are compared with this one.
BABBLE_FILE = "degeneration.json"
_NGRAM = 4
# Tokens below which a text is too short to call it a loop.
_MIN_TOKENS = 16
_MIN_REPEATED_SHARE = 0.75
# Dropped records that were empty texts, by the role that was silent.
_EMPTY_REASONS = {"empty_question": "questioner", "empty_answer": "roleplayer"}
ROLES = ("questioner", "roleplayer")


def loops(token_ids: Sequence[int] | Sequence[str], stop: StopReason) -> bool:
    """Whether a sampled text repeated itself until it was cut off. Of an API's text words do."""
    if stop is not StopReason.LENGTH or len(token_ids) < _MIN_TOKENS:
        return False
    seen: set[tuple[object, ...]] = set()
    num_later = num_repeated = 0
    for start in range(len(token_ids) - _NGRAM + 1):
        ngram = tuple(token_ids[start : start + _NGRAM])
        if start >= len(token_ids) // 2:
            num_later += 1
            num_repeated += ngram in seen
        seen.add(ngram)
    return num_repeated >= _MIN_REPEATED_SHARE * num_later


@dataclass(frozen=True, slots=True)
class Degeneration:
    """Sampled texts of one role, and how many of them were empty or looped."""

    num_texts: int = 0
    num_empty: int = 0
    num_looping: int = 0

    @property
    def share(self) -> float:
        """(empty + looping) / texts; 0 without a text."""
        return (self.num_empty + self.num_looping) / self.num_texts if self.num_texts else 0.0

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} of {self.num_texts} "
            f"({self.num_empty} empty, {self.num_looping} repeating to the token limit)"
        )


class DegenerationWatch:
    """Listens to the dialogues of one scope ("t1", "eval-m1"); m_0's are in t0 and eval-m0.

    `check` raises; it may be called as often as one likes.
    """

    def __init__(self, scope: str, store: RunStore, config: DegenerationConfig) -> None:
        self._scope = scope
        self._store = store
        self._config = config
        self._counts = dict.fromkeys(ROLES, Degeneration())
        base = "eval-m0" if scope.startswith("eval-") else "t0"
        self._base = {} if scope == base else _read(store, base)

    def heard(self, dialogue: Dialogue) -> None:
        """Counts the texts of a dialogue. Fixed answers were not sampled and do not count."""
        for turn in dialogue.turns:
            self._count("questioner", looping=loops(turn.question_ids, turn.question_stop))
            if turn.answer_stop is not StopReason.FIXED:
                said = turn.answer.split() if turn.answer_ids is None else turn.answer_ids
                self._count("roleplayer", looping=loops(said, turn.answer_stop))

    def dropped(self, problem: RecordDropped) -> None:
        """Counts a dialogue that was dropped, if it was for an empty text."""
        if (role := _EMPTY_REASONS.get(problem.reason)) is not None:
            self._count(role, empty=True)

    def _count(self, role: str, *, empty: bool = False, looping: bool = False) -> None:
        old = self._counts[role]
        self._counts[role] = replace(
            old,
            num_texts=old.num_texts + 1,
            num_empty=old.num_empty + empty,
            num_looping=old.num_looping + looping,
        )

    def check(self) -> None:
        """Raises DivergenceError when too many of a role's texts are empty or loop."""
        for role, degeneration in self._counts.items():
            if degeneration.num_texts < self._config.min_texts:
                continue
            said = f"{self._scope}: the {role}'s texts are empty or endless: {degeneration}"
            if degeneration.share > self._config.max_share:
                raise DivergenceError(
                    f"{said}, more than rollout.degeneration.max_share = "
                    f"{self._config.max_share:.0%}; {_ADVICE[role]}"
                )
            base = self._base.get(role, Degeneration())
            if base.num_texts < self._config.min_texts:
                continue
            if degeneration.share > base.share + self._config.max_rise:
                raise DivergenceError(
                    f"{said}; with m0 it was {base}, and rollout.degeneration.max_rise = "
                    f"{self._config.max_rise:.0%}; {_ADVICE[role]}"
                )

    def finish(self) -> None:
        """Checks, and keeps the counts for the checkpoints to come."""
        self.check()
        values = {role: asdict(degeneration) for role, degeneration in self._counts.items()}
        make_folder(self._store.root / self._scope)  # there is none if every dialogue was dropped
        self._store.write_json(f"{self._scope}/{BABBLE_FILE}", values)


_ADVICE = {
    "questioner": (
        "these weights must not be used: train with a lower trainer.learning_rate, or look at "
        "logs/ if m0 itself speaks like this"
    ),
    "roleplayer": "look at logs/ and at the model and prompts of the roleplayer",
}


def _read(store: RunStore, scope: str) -> Mapping[str, Degeneration]:
    """The counts of an earlier scope; none where it was played by an earlier version."""
    values: dict[str, Any] = store.read_json(f"{scope}/{BABBLE_FILE}") or {}
    names = ("num_texts", "num_empty", "num_looping")
    found = {}
    for role in ROLES:
        counts = values.get(role)
        if isinstance(counts, dict) and all(isinstance(counts.get(n), int) for n in names):
            found[role] = Degeneration(*(counts[name] for name in names))
    return found
