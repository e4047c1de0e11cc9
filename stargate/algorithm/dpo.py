"""Preferences between first questions: the best of a pair is chosen, the worst rejected.

Both follow the same history, the prompt that the engine saw. Later turns are not compared: their
histories differ, because rollouts do not branch. The loss: PreferenceLoss in actors/training.
"""

from collections.abc import Sequence
from typing import Literal

from stargate.algorithm.base import Drop, Material, Needs, ScoredGroup, require_length
from stargate.algorithm.rewards import FactWorth, question_rewards, worth_by_task
from stargate.config.algorithm import DpoConfig
from stargate.errors import RecordDropped
from stargate.text.chat import ChatFormat
from stargate.text.views import Views
from stargate.types import Dialogue, Selection, StopReason, TrainingExample


class Dpo:
    """An IterationAlgorithm. Two examples per pair, one group."""

    def __init__(self, config: DpoConfig, views: Views, chat: ChatFormat, max_length: int) -> None:
        self._config = config
        self._views = views
        self._chat = chat
        self._max_length = max_length
        by_facts = config.credit == "facts"
        self.needs = Needs(
            scores=not by_facts,
            turn_scores=not by_facts,
            fact_values=by_facts,
            reference_logprobs=True,
        )

    def select(self, group: ScoredGroup, seed: int) -> Sequence[Selection]:
        return []  # questions are compared, not dialogues

    def learn(self, material: Material, drop: Drop) -> Sequence[TrainingExample]:
        worths = worth_by_task(material, self._config.clip)
        examples: list[TrainingExample] = []
        for group in sorted(material.groups, key=lambda group: group.pair.id):
            worth = worths.get(group.pair.task.id)
            if self._config.credit == "facts" and worth is None:
                continue  # counted when their facts could not be valued
            try:
                examples += self._preference(group, worth)
            except RecordDropped as problem:
                drop(problem)
        return examples

    def _preference(self, group: ScoredGroup, worth: FactWorth | None) -> list[TrainingExample]:
        """Raises RecordDropped if no two questions differ enough."""
        whole = [d for d in group.dialogues if d.turns[0].question_stop is StopReason.STOP]
        clip = self._config.clip
        rewards = {d.id: question_rewards(group, d, worth, clip)[0] for d in whole}
        ranked = sorted(whole, key=lambda d: (-rewards[d.id], d.id))
        if not ranked or rewards[ranked[0].id] - rewards[ranked[-1].id] < self._config.margin:
            problem = f"no two questions differ by {self._config.margin:g} nats"
            raise RecordDropped("no_preference", group.pair.id, problem)
        return [
            self._example(group, ranked[0], "chosen"),
            self._example(group, ranked[-1], "rejected"),
        ]

    def _example(
        self, group: ScoredGroup, dialogue: Dialogue, side: Literal["chosen", "rejected"]
    ) -> TrainingExample:
        messages = self._views.questioner(group.pair, dialogue.turns[:1])[:-1]
        masked = self._chat.masked_ids(messages)
        require_length(masked.ids, self._max_length, dialogue.id)
        return TrainingExample(
            group.pair.id,
            dialogue.id,
            masked.ids,
            tuple(map(float, masked.mask)),
            "",
            group=dialogue.id.rpartition("/")[0],
            side=side,
        )
