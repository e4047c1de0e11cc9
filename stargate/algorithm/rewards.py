"""What a turn was worth, in nats, and how that compares with what else could have been asked.

turn gain    r_k = clip(delta_k own [- mean over other personas' golds of delta_k], +-clip)
             delta_k: log p of a gold under m_0 after turn k minus before it; before the first turn
             stands a turn that brings nothing, so the mere form of a turn is worth 0
fact values  r_k = mean over personas of the sum over the facts that the question would bring out
             and that were not told before of clip(V[persona, fact], +-clip)

Turn gains as rewards: arXiv 2602.12342. Leave-one-out means: arXiv 2402.14740.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

from stargate.algorithm.base import Material, ScoredGroup
from stargate.types import Dialogue, TurnScore


def turn_gains(scores: Sequence[TurnScore], clip: float, contrast: bool = False) -> list[float]:
    """One reward per turn, from the scores of turns 0, 1, ... of a dialogue, in that order.

    With `contrast` other golds must have been scored.
    """
    gains = []
    for before, after in pairwise(scores):
        gain = after.own - before.own
        if contrast:
            others = [b - a for a, b in zip(before.others, after.others, strict=True)]
            gain -= sum(others) / len(others)
        gains.append(clipped(gain, clip))
    return gains


def clipped(value: float, clip: float) -> float:
    return max(-clip, min(clip, value))


class FactWorth:
    """What questions are worth over all personas of one task.

    `values` are V of each fact by persona id, not clipped yet; `brings_out` as in `Material`.
    """

    def __init__(
        self,
        values: Mapping[str, Sequence[float]],
        brings_out: Mapping[tuple[str, str], Sequence[int]],
        clip: float,
    ) -> None:
        self._values = {p: [clipped(v, clip) for v in row] for p, row in values.items()}
        self._brings_out = brings_out
        self._known: dict[str, frozenset[tuple[str, int]]] = {}

    def brings_out(self, question: str, persona_id: str) -> Sequence[int]:
        """The facts that a question would bring out of a persona."""
        return self._brings_out[question, persona_id]

    def rewards(self, earlier: Iterable[str], questions: Iterable[str]) -> dict[str, float]:
        """The mean worth of each of some questions after `earlier` ones: a fact counts once."""
        told = {(persona, fact) for text in earlier for persona, fact in self._facts(text)}
        size = len(self._values)
        return {
            question: sum(self._values[p][f] for p, f in self._facts(question) - told) / size
            for question in questions
        }

    def reward(self, earlier: Iterable[str], question: str) -> float:
        """The mean worth of one question."""
        return self.rewards(earlier, [question])[question]

    def _facts(self, question: str) -> frozenset[tuple[str, int]]:
        """(persona id, fact) that a question would bring out if none was told."""
        if question not in self._known:
            hits = ((p, f) for p in self._values for f in self._brings_out[question, p])
            self._known[question] = frozenset(hits)
        return self._known[question]


def worth_by_task(material: Material, clip: float) -> dict[str, FactWorth]:
    """By task id; a task of whose pairs none has fact values is not in it."""
    values: dict[str, dict[str, Sequence[float]]] = defaultdict(dict)
    for pair in (group.pair for group in material.groups):
        if pair.id in material.fact_values:
            values[pair.task.id][pair.persona.id] = material.fact_values[pair.id]
    return {task: FactWorth(of, material.brings_out, clip) for task, of in values.items()}


def question_rewards(
    group: ScoredGroup,
    dialogue: Dialogue,
    worth: FactWorth | None,
    clip: float,
    contrast: bool = False,
) -> list[float]:
    """One reward per question of a dialogue: by `worth`, or where there is none by turn gains."""
    if worth is None:
        return turn_gains(group.turn_scores[dialogue.id], clip, contrast)
    asked = [turn.question for turn in dialogue.turns]
    return [worth.reward(asked[:number], question) for number, question in enumerate(asked)]


def above_siblings(
    groups: Sequence[ScoredGroup], rewards: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Each reward minus the mean of its siblings' rewards, in nats; both by dialogue id.

    Siblings were asked in the same state: at turn 1 all of a task, whoever plays, because the
    Questioner doesn't know who; later all of a pair at that turn. `groups` are those of one task.
    """
    siblings: dict[Hashable, list[tuple[str, int]]] = defaultdict(list)
    for group in groups:
        for dialogue in group.dialogues:
            for number in range(len(rewards[dialogue.id])):
                siblings[(group.pair.id, number) if number else None].append((dialogue.id, number))
    found = {dialogue_id: [0.0] * len(of_turns) for dialogue_id, of_turns in rewards.items()}
    for places in siblings.values():
        above = leave_one_out([rewards[dialogue_id][number] for dialogue_id, number in places])
        for (dialogue_id, number), value in zip(places, above, strict=True):
            found[dialogue_id][number] = value
    return found


def by_task(groups: Sequence[ScoredGroup]) -> dict[str, list[ScoredGroup]]:
    """The groups of each task, in the order of their pairs' ids."""
    found: dict[str, list[ScoredGroup]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: group.pair.id):
        found[group.pair.task.id].append(group)
    return found


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """Each reward minus the mean of the others; 0 for one without siblings.

    Not divided by their deviation, which would blow up states where all did alike (2503.20783).
    """
    total, others = sum(rewards), len(rewards) - 1
    return [r - (total - r) / others if others else 0.0 for r in rewards]


def area_under_curve(values: Sequence[float], wanted: Sequence[bool]) -> float | None:
    """How often a wanted one has a higher value than another, ties counting half (the AUC).

    None if all are wanted, or none.
    """
    good = [v for v, w in zip(values, wanted, strict=True) if w]
    bad = [v for v, w in zip(values, wanted, strict=True) if not w]
    if not good or not bad:
        return None
    above = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return above / (len(good) * len(bad))
