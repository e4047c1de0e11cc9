"""The seam for algorithms: from the scored dialogues of one pair to what is learned from them.

    dialogues, scores -> ScoredGroup --select--> Selections -> responses, where they are needed
                                     --examples--> TrainingExamples -> the objective that the
                                                   algorithm's config variant names
or, for one that compares dialogues of different pairs (`IterationAlgorithm`):
    all ScoredGroups of an iteration, fact values, replay -> Material --learn--> TrainingExamples

An algorithm is pure: no engine, no file, no tensor. stargate/pair_steps.py makes what it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from stargate.config.algorithm import DpoConfig, GrpoConfig, TurnWeightedConfig
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

    `scores`: the own gold is scored after each dialogue.
    `num_other_golds`: golds of so many other personas are scored beside the own one; None: of all.
    `turn_scores`: the golds are scored after every turn, not only after the last, and before the
    first after one that brings nothing.
    `fact_values`: what each fact of a pair's persona is worth, and what each question would bring
    out of each persona. Needs facts grounding.
    `question_fit`: how likely m_0 finds each question asked in an iteration as the first one about
    each task.
    `own_response`: m_t answers the task after each selected dialogue.
    `reference_logprobs`: examples get log p of each of their tokens under the frozen m_0.
    """

    scores: bool = True
    num_other_golds: int | None = 0
    turn_scores: bool = False
    fact_values: bool = False
    question_fit: bool = False
    own_response: bool = False
    reference_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The dialogues of one pair that could be scored, by index; `scores` stand beside them, if
    the algorithm needs any.

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


@dataclass(frozen=True, slots=True)
class Material:
    """All of an iteration, for an algorithm that learns from it at once. Groups by pair id.

    Only where fact values are needed, and for pairs that have a gold:
    `fact_values` has one value per fact of the persona, in nats, by pair id; `brings_out` the
    indices of the facts that a question of any task would bring out of a persona if none was told
    yet, by (question, persona id). `fit`, where it is needed, is log p under m_0, in nats, of each
    question that was not cut off as the first one about a task, by (question, task id). `near` has
    the questions of all tasks that ask the same as a question, or nearly, itself among them.
    """

    groups: Sequence[ScoredGroup]
    near: Mapping[str, frozenset[str]]
    fact_values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    brings_out: Mapping[tuple[str, str], Sequence[int]] = field(default_factory=dict)
    fit: Mapping[tuple[str, str], float] = field(default_factory=dict)


class _Selects(Protocol):
    @property
    def needs(self) -> Needs: ...

    def select(self, group: ScoredGroup, seed: int) -> Sequence[Selection]:
        """The dialogues that examples are made of; at most one selection of each."""
        ...


class PairAlgorithm(_Selects, Protocol):
    """What is learned from the scored dialogues of one pair."""

    def examples(self, group: ScoredGroup, drop: Drop) -> Sequence[TrainingExample]:
        """The examples of the group's selections. What can't be one is dropped, by `drop`.

        A token with weight 0 is not learned at all. Behaviour log-probs are the algorithm's to copy
        from the turns (`question_logprobs`): they are those after temperature and top-p. If all
        examples have them, the trainer scores them, too, before its first step.
        """
        ...


@runtime_checkable
class IterationAlgorithm(_Selects, Protocol):
    """What is learned from all dialogues of an iteration at once. It gets no responses."""

    def learn(self, material: Material, drop: Drop) -> Sequence[TrainingExample]:
        """The examples of an iteration, the same for the same material. As `examples`."""
        ...


Algorithm = PairAlgorithm | IterationAlgorithm


def require_length(ids: Sequence[int], max_length: int, where: str) -> None:
    """Raises RecordDropped for an example that is too long to be learned whole: a cut one would
    teach to break off.
    """
    if len(ids) > max_length:
        problem = f"{len(ids)} tokens, trainer.max_length is {max_length}"
        raise RecordDropped("example_too_long", where, problem)


def build_algorithm(config: RunConfig, views: Views, chat: ChatFormat) -> Algorithm:
    """The algorithm that `config.algorithm` names."""
    from stargate.algorithm.dpo import Dpo
    from stargate.algorithm.grpo import Grpo
    from stargate.algorithm.star_gate import StarGate
    from stargate.algorithm.turn_weighted import TurnWeighted

    settings, max_length = config.algorithm, config.trainer.max_length
    if isinstance(settings, TurnWeightedConfig):
        return TurnWeighted(settings, views, chat, max_length)
    if isinstance(settings, DpoConfig):
        return Dpo(settings, views, chat, max_length)
    if isinstance(settings, GrpoConfig):
        return Grpo(settings, views, chat, max_length)
    return StarGate(settings, views, chat, max_length)
