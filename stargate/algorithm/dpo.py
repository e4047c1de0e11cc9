"""Preferences between first questions: the best of a pair is chosen, the worst rejected.

Both follow the same history, the prompt that the engine saw. Later turns are not compared: their
histories differ, because rollouts do not branch. The loss: PreferenceLoss in actors/training.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from stargate.algorithm.base import Drop, Material, Needs, ScoredGroup
from stargate.algorithm.question_worth import QuestionWorthAlgorithm
from stargate.algorithm.rewards import FactWorth, question_rewards
from stargate.config.algorithm import DpoConfig
from stargate.errors import RecordDropped
from stargate.types import Dialogue, StopReason, TrainingExample


class Dpo(QuestionWorthAlgorithm[DpoConfig]):
    """An IterationAlgorithm. Two examples per pair, one group."""

    @property
    def needs(self) -> Needs:
        return replace(super().needs, reference_logprobs=True)

    def learn(self, material: Material, drop: Drop) -> Sequence[TrainingExample]:
        examples: list[TrainingExample] = []
        for _, groups, worth in self._valued(material):
            for group in groups:
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
        masked = self._masked(messages, [True], dialogue.id)
        return TrainingExample(
            group.pair.id,
            dialogue.id,
            masked.ids,
            tuple(map(float, masked.mask)),
            "",
            group=dialogue.id.rpartition("/")[0],
            side=side,
        )
