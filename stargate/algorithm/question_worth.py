"""What the algorithms have in common that learn from what single questions are worth.

Worth: rewards.py. Each is an IterationAlgorithm: it sees all pairs of an iteration at once.
"""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from stargate.algorithm.base import Material, Needs, ScoredGroup, require_length
from stargate.algorithm.rewards import FactWorth, by_task, worth_by_task
from stargate.algorithm.star_gate import mark_learned
from stargate.config.algorithm import QuestionWorthConfig
from stargate.text.chat import ChatFormat, MaskedIds, Message
from stargate.text.views import Views
from stargate.types import Selection

_Config = TypeVar("_Config", bound=QuestionWorthConfig)


class QuestionWorthAlgorithm(Generic[_Config]):
    """Everything but `learn`."""

    def __init__(self, config: _Config, views: Views, chat: ChatFormat, max_length: int) -> None:
        self._config = config
        self._views = views
        self._chat = chat
        self._max_length = max_length

    @property
    def needs(self) -> Needs:
        by_facts = self._config.credit == "facts"
        return Needs(scores=not by_facts, turn_scores=not by_facts, fact_values=by_facts)

    def select(self, group: ScoredGroup, seed: int) -> Sequence[Selection]:
        return []  # questions are learned from, not dialogues

    def _valued(
        self, material: Material
    ) -> Iterator[tuple[str, list[ScoredGroup], FactWorth | None]]:
        """Each task's id, groups and worth by facts; None: questions are worth their turn gains.

        Without the tasks whose facts could not be valued, which was counted then.
        """
        worths = worth_by_task(material, self._config.clip)
        for task, groups in by_task(material.groups).items():
            worth = worths.get(task)
            if self._config.credit == "turns" or worth is not None:
                yield task, groups, worth

    def _masked(
        self, messages: Sequence[Message], learned: Sequence[bool], dialogue_id: str
    ) -> MaskedIds:
        """The ids of a dialogue, with loss on the questions that are `learned`.

        Raises RecordDropped if it is too long.
        """
        masked = self._chat.masked_ids(mark_learned(messages, learned))
        require_length(masked.ids, self._max_length, dialogue_id)
        return masked
