"""Policy gradients by turn: a question becomes likelier by what it was worth above its siblings.

    A = r - mean r of the siblings                (nats; not divided by their deviation)

r and siblings: rewards.py. A question that was cut off has no loss. The loss: ClippedPolicyGradient
in actors/training. (GRPO: arXiv 2402.03300; without the deviation: 2503.20783.)
"""

from collections.abc import Sequence
from dataclasses import replace

from stargate.algorithm.base import Drop, Material, Needs
from stargate.algorithm.question_worth import QuestionWorthAlgorithm
from stargate.algorithm.rewards import above_siblings, question_rewards
from stargate.config.algorithm import GrpoConfig
from stargate.errors import RecordDropped
from stargate.types import Dialogue, Pair, StopReason, TrainingExample


class Grpo(QuestionWorthAlgorithm[GrpoConfig]):
    """An IterationAlgorithm. One example per dialogue, each question with its own advantage."""

    @property
    def needs(self) -> Needs:
        return replace(super().needs, reference_logprobs=True)

    def learn(self, material: Material, drop: Drop) -> Sequence[TrainingExample]:
        examples = []
        for _, groups, worth in self._valued(material):
            played = [(group, dialogue) for group in groups for dialogue in group.dialogues]
            rewards = {d.id: question_rewards(g, d, worth, self._config.clip) for g, d in played}
            advantages = above_siblings(groups, rewards)
            for group, dialogue in played:
                try:
                    of_turns = self._whole(dialogue, advantages[dialogue.id], drop)
                    examples.append(self._example(group.pair, dialogue, of_turns))
                except RecordDropped as problem:
                    drop(problem)
        return examples

    def _whole(self, dialogue: Dialogue, advantages: Sequence[float], drop: Drop) -> list[float]:
        """The advantages, 0 for questions that were cut off, which are counted."""
        found = []
        for number, (turn, advantage) in enumerate(zip(dialogue.turns, advantages, strict=True), 1):
            whole = turn.question_stop is StopReason.STOP
            if not whole:
                where = f"turn {number} of {dialogue.id}"
                drop(RecordDropped("question_cut_off", where, "it has no loss"))
            found.append(advantage if whole else 0.0)
        return found

    def _example(
        self, pair: Pair, dialogue: Dialogue, advantages: Sequence[float]
    ) -> TrainingExample:
        """Raises RecordDropped if no question has an advantage, or it is too long."""
        if not any(advantages):
            problem = "no question is worth more or less than its siblings"
            raise RecordDropped("nothing_to_learn", dialogue.id, problem)
        by_token: list[tuple[float, float]] = []
        for turn, advantage in zip(dialogue.turns, advantages, strict=True):
            if turn.question_logprobs is None:
                raise RecordDropped("no_logprobs", dialogue.id, "the engine told none of its own")
            if advantage:
                by_token += [(advantage, logprob) for logprob in turn.question_logprobs]
        messages = self._views.questioner(pair, dialogue.turns)[:-1]
        masked = self._masked(messages, [a != 0 for a in advantages], dialogue.id)
        following = iter(by_token)
        learned = [next(following) if learned else (0.0, 0.0) for learned in masked.mask]
        weights, logprobs = zip(*learned, strict=True)
        return TrainingExample(
            pair.id, dialogue.id, masked.ids, weights, "", behaviour_logprobs=logprobs
        )
