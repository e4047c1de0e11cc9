"""Which of a pair's dialogues is trained on: best of N (PAPER 3), its contrastive form, a control.

A rule gives each of the pair's scored dialogues a value, and the highest is selected. A new one is
an entry of RULES and a word in stargate/config/algorithm.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from stargate.seeds import derive_seed
from stargate.types import DialogueScore, Pair, Selection


def contrast(score: DialogueScore) -> float:
    """Gold log-prob minus the mean of the other personas' golds, in nats.

    Raises ValueError if no other gold was scored.
    """
    if score.other_gold_logprob is None:
        raise ValueError(f"{score.dialogue_id}: no gold of another persona was scored")
    return score.gold_logprob - score.other_gold_logprob


@dataclass(frozen=True, slots=True)
class Rule:
    """`value` is shown for each dialogue; `needs_others`: golds of other personas are scored too.

    A `drawn` rule ignores the values: one of the dialogues is drawn by the seed.
    """

    value: Callable[[DialogueScore], float]
    needs_others: bool = False
    drawn: bool = False


def _gold(score: DialogueScore) -> float:
    return score.gold_logprob


RULES: Mapping[str, Rule] = {
    "gold": Rule(_gold),
    "contrastive": Rule(contrast, needs_others=True),
    "random": Rule(_gold, drawn=True),
}


def select(pair_id: str, scores: Sequence[DialogueScore], rule: str, seed: int) -> Selection:
    """The selected one of a pair's scored dialogues; ties go to the first.

    `scores` must not be empty.
    """
    if not scores:
        raise ValueError(f"pair {pair_id}: nothing to select from")
    values = [RULES[rule].value(score) for score in scores]
    if RULES[rule].drawn:
        best = Random(derive_seed(seed, "select", pair_id)).randrange(len(scores))
    else:
        best = values.index(max(values))
    return Selection(
        pair_id=pair_id,
        dialogue_id=scores[best].dialogue_id,
        gold_logprob=scores[best].gold_logprob,
        candidates=tuple(score.dialogue_id for score in scores),
        candidate_scores=tuple(values),
    )


def other_golds(pair: Pair, of_task: Sequence[Pair], at_most: int | None, seed: int) -> list[str]:
    """The golds of other personas for the pair's task, `at_most` drawn by seed; None: all.

    `of_task`: all pairs of that task.
    """
    others = [p for p in of_task if p.persona.id != pair.persona.id]
    golds = [p.gold for p in sorted(others, key=lambda p: p.persona.id) if p.gold is not None]
    if at_most is None or len(golds) <= at_most:
        return golds
    return Random(derive_seed(seed, "others", pair.id)).sample(golds, at_most)
