"""The seam for algorithms: from the scored dialogues of one pair to what is learned from them.

    dialogues, scores -> ScoredGroup --select--> Selections -> responses, where they are needed
                                     --examples--> TrainingExamples -> the objective that the
                                                   algorithm's config variant names

An algorithm is pure: no engine, no file, no tensor. stargate/pair_steps.py makes what it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stargate.config.run import RunConfig
from stargate.errors import RecordDropped
from stargate.text.chat import ChatFormat
from stargate.text.views import Views
from stargate.types import (
    Dialogue,
    DialogueScore,
    Generation,
    Pair,
    Selection,
    TrainingExample,
    TurnScore,
)

# Counts a record that is left out, and why.
Drop = Callable[[RecordDropped], None]


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be made before an algorithm is asked for examples. Each costs something.

    `num_other_golds`: golds of so many other personas are scored beside the own one; None: of all.
    `turn_scores`: the golds are scored after every turn, not only after the last.
    `own_response`: m_t answers the task after each selected dialogue.
    `reference_logprobs`: examples get log p of each of their tokens under the frozen m_0.
    """

    num_other_golds: int | None = 0
    turn_scores: bool = False
    own_response: bool = False
    reference_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The dialogues of one pair that could be scored, by index; `scores` stand beside them.

    `turn_scores` has turns 0..K of each dialogue, by its id, where the algorithm needs them. Those
    are there for `select`; `selections` and `responses` (by dialogue id) for `examples` only.
    """

    pair: Pair
    dialogues: Sequence[Dialogue]
    scores: Sequence[DialogueScore]
    turn_scores: Mapping[str, Sequence[TurnScore]] = field(default_factory=dict)
    selections: Sequence[Selection] = ()
    responses: Mapping[str, Generation] = field(default_factory=dict)

    def dialogue(self, dialogue_id: str) -> Dialogue:
        return next(d for d in self.dialogues if d.id == dialogue_id)


class Algorithm(Protocol):
    """What is learned from the scored dialogues of one pair."""

    @property
    def needs(self) -> Needs: ...

    def select(self, group: ScoredGroup, seed: int) -> Sequence[Selection]:
        """The dialogues that examples are made of; at most one selection of each."""
        ...

    def examples(self, group: ScoredGroup, drop: Drop) -> Sequence[TrainingExample]:
        """The examples of the group's selections. What can't be one is dropped, by `drop`.

        A token with weight 0 is not learned at all. Behaviour log-probs are the algorithm's to copy
        from the turns (`question_logprobs`): they are those after temperature and top-p.
        """
        ...


def build_algorithm(config: RunConfig, views: Views, chat: ChatFormat) -> Algorithm:
    """The algorithm that `config.algorithm` names."""
    from stargate.algorithm.star_gate import StarGate

    algorithms = {"star_gate": StarGate}
    return algorithms[config.algorithm.type](
        config.algorithm, views, chat, config.trainer.max_length
    )
