"""Turn-weighted: every question is learned as much as it was worth more than its siblings.

    loss = -sum w log pi(question) / sum w                             (over the questions' tokens)
    w    = min(max_weight, max(0, r - mean r of its siblings) / scale)
           / (1 + number of other tasks whose kept questions nearly repeat it)

r: rewards.py. Siblings are questions asked in the same state: at turn 1 all of a task, whoever
plays, because the Questioner doesn't know who; later all of a pair at that turn. A question that
was cut off, or is worth nothing, is not learned. (Reward-weighted fine-tuning: arXiv 2506.06964.)
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stargate.algorithm.base import Drop, Material, Needs, ScoredGroup
from stargate.algorithm.question_worth import QuestionWorthAlgorithm
from stargate.algorithm.rewards import FactWorth, above_siblings, question_rewards
from stargate.config.algorithm import TurnWeightedConfig
from stargate.errors import RecordDropped
from stargate.types import Pair, StopReason, TrainingExample, Turn

# Questions, each wording once: the turn, and the dialogue where it was asked.
_Pool = Mapping[str, tuple[Turn, str]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Questions asked of a pair; `weights` are what each counts, not yet shared over tasks."""

    pair: Pair
    dialogue_id: str
    turns: tuple[Turn, ...]
    weights: tuple[float, ...]

    def kept(self) -> Iterable[str]:
        return (t.question for t, w in zip(self.turns, self.weights, strict=True) if w > 0)


class TurnWeighted(QuestionWorthAlgorithm[TurnWeightedConfig]):
    """An IterationAlgorithm. One example per dialogue, each question with its own weight."""

    @property
    def needs(self) -> Needs:
        config = self._config
        return replace(
            super().needs,
            num_other_golds=config.max_other_golds if config.contrast else 0,
            question_fit=config.fit > 0,
        )

    def learn(self, material: Material, drop: Drop) -> Sequence[TrainingExample]:
        asked = []
        shared = _pool(material.groups) if self._config.recombine == "split" else {}
        for task, groups, worth in self._valued(material):
            if self._config.recombine is not None and worth is not None:
                pool = shared or _pool(groups)
                fit = dict.fromkeys(pool, 0.0)
                if self._config.fit:
                    fit = {q: self._config.fit * material.fit[q, task] for q in pool}
                asked += self._recombined(groups, pool, worth, fit, material.near)
            else:
                asked += self._weighted(groups, worth)
        tasks: dict[str, set[str]] = defaultdict(set)  # in which a question is kept
        for one in asked:
            for question in one.kept():
                tasks[question].add(one.pair.task.id)
        examples = []
        for one in asked:
            try:
                examples.append(self._example(one, tasks, material.near))
            except RecordDropped as problem:
                drop(problem)
        return examples

    def _weighted(self, groups: Sequence[ScoredGroup], worth: FactWorth | None) -> list[_Asked]:
        """The dialogues of one task as they were played, with the weight of each question."""
        clip, contrast = self._config.clip, self._config.contrast
        played = [(group, dialogue) for group in groups for dialogue in group.dialogues]
        rewards = {d.id: question_rewards(group, d, worth, clip, contrast) for group, d in played}
        advantages = above_siblings(groups, rewards)
        found = []
        for group, dialogue in played:
            of_turns = zip(
                dialogue.turns, rewards[dialogue.id], advantages[dialogue.id], strict=True
            )
            weights = tuple(self._weight(*of_turn) for of_turn in of_turns)
            found.append(_Asked(group.pair, dialogue.id, dialogue.turns, weights))
        return found

    def _weight(self, turn: Turn, reward: float, advantage: float) -> float:
        if turn.question_stop is not StopReason.STOP or reward <= 0 or advantage <= 0:
            return 0.0
        return min(self._config.max_weight, advantage / self._config.scale)

    def _recombined(
        self,
        groups: Sequence[ScoredGroup],
        pool: _Pool,
        worth: FactWorth,
        fit: Mapping[str, float],
        near: Mapping[str, frozenset[str]],
    ) -> list[_Asked]:
        """The questions of the pool that are best for a task, as dialogues of as many turns as were
        played.

        The i-th begins with the i-th best question, by worth and `fit`, and goes on greedily, a
        question and its near copies once; what other lists of the task have already counts less.
        They are dealt out to the task's pairs in turn, whose facts answer them. Siblings are all
        questions of the pool, replayed in the same state.
        """
        first = worth.rewards((), pool)
        starts: list[str] = []
        used: Counter[str] = Counter()
        good = (question for question in pool if first[question] > 0)
        for question in sorted(good, key=lambda q: (-first[q] - fit[q], q)):
            if near[question].isdisjoint(starts):
                starts.append(question)
        num_turns = max(len(d.turns) for group in groups for d in group.dialogues)
        found = []
        for number, start in enumerate(starts[: self._config.num_lists]):
            asked, weights, rewards = [], [], first
            best = start
            while True:
                others = (sum(rewards.values()) - rewards[best]) / max(1, len(rewards) - 1)
                advantage = rewards[best] - others if len(rewards) > 1 else 0.0
                weights.append(self._weight(pool[best][0], rewards[best], advantage))
                asked.append(best)
                rest = [q for q in starts if near[q].isdisjoint(asked)]
                if len(asked) == num_turns or not rest:
                    break
                rewards = worth.rewards(asked, pool)
                best = max(rest, key=lambda q: rewards[q] / (1 + used[q]) + fit[q])
                used[best] += 1
            pair = groups[number % len(groups)].pair
            turns = [pool[question][0] for question in asked]
            answered = self._answered(pair, turns, worth)
            found.append(_Asked(pair, pool[start][1], answered, tuple(weights)))
        return found

    def _answered(self, pair: Pair, turns: Sequence[Turn], worth: FactWorth) -> tuple[Turn, ...]:
        """The questions, answered with the facts of the pair's persona as they are."""
        told: list[int] = []
        answered = []
        for turn in turns:
            asked_for = worth.brings_out(turn.question, pair.persona.id)
            new = tuple(fact for fact in asked_for if fact not in told)
            told += new
            text = " ".join(pair.persona.facts[fact] for fact in new)
            if not text:
                views = self._views
                text = views.told_already() if asked_for else views.no_preference()
            answered.append(
                replace(
                    turn,
                    answer=text,
                    answer_ids=(),
                    answer_stop=StopReason.FIXED,
                    elicited=new,
                    retracted=(),
                )
            )
        return tuple(answered)

    def _example(
        self, asked: _Asked, tasks: Mapping[str, set[str]], near: Mapping[str, frozenset[str]]
    ) -> TrainingExample:
        """Raises RecordDropped if no question is learned, or it is too long."""
        views, pair, turns = self._views, asked.pair, asked.turns
        if not any(asked.weights):
            problem = "no question is worth more than its siblings"
            raise RecordDropped("nothing_to_learn", asked.dialogue_id, problem)
        by_token: list[float] = []
        for turn, weight in zip(turns, asked.weights, strict=True):
            if weight:
                own = {pair.task.id}
                others = set().union(*(tasks.get(q, ()) for q in near[turn.question])) - own
                by_token += [weight / (1 + len(others))] * len(turn.question_ids)
        if self._config.view == "rollout":
            messages = views.questioner(pair, turns)[:-1]
        else:
            messages = views.questions_only(pair, turns)
        masked = self._masked(messages, [w > 0 for w in asked.weights], asked.dialogue_id)
        following = iter(by_token)
        weights = tuple(next(following) if learned else 0.0 for learned in masked.mask)
        return TrainingExample(pair.id, asked.dialogue_id, masked.ids, weights, "")


def _pool(groups: Sequence[ScoredGroup]) -> _Pool:
    """The questions that were not cut off."""
    pool: dict[str, tuple[Turn, str]] = {}
    for group in sorted(groups, key=lambda group: group.pair.id):
        for dialogue in group.dialogues:
            for turn in dialogue.turns:
                if turn.question_stop is StopReason.STOP:
                    pool.setdefault(turn.question, (turn, dialogue.id))
    return pool
