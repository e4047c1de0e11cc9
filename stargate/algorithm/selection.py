"""Which of a pair's dialogues is trained on: best of N (PAPER 3), its contrastive form, a control.

A rule is a function from the pair's scores to a value per dialogue; the highest is selected. A new
one is an entry of RULES and a word in stargate/config/algorithm.py.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from stargate.seeds import derive_seed
from stargate.types import DialogueScore, Pair, Selection


def select(pair_id: str, scores: Sequence[DialogueScore], rule: str, seed: int) -> Selection:
    """The best of one pair's scored dialogues; ties go to the first.

    `scores` must not be empty.
    """
    if not scores:
        raise ValueError(f"pair {pair_id}: nothing to select from")
    if rule == "random":
        values = [score.gold_logprob for score in scores]
        best = Random(derive_seed(seed, "select", pair_id)).randrange(len(scores))
    else:
        values = [RULES[rule](score) for score in scores]
        best = values.index(max(values))
    return Selection(
        pair_id=pair_id,
        dialogue_id=scores[best].dialogue_id,
        gold_logprob=scores[best].gold_logprob,
        candidates=tuple(score.dialogue_id for score in scores),
        candidate_scores=tuple(values),
    )


def contrast(score: DialogueScore) -> float:
    """Gold log-prob minus the mean of the other personas' golds, in nats.

    Raises ValueError if no other gold was scored.
    """
    if score.other_gold_logprob is None:
        raise ValueError(f"{score.dialogue_id}: no gold of another persona was scored")
    return score.gold_logprob - score.other_gold_logprob


RULES: Mapping[str, Callable[[DialogueScore], float]] = {
    "gold": lambda score: score.gold_logprob,
    "contrastive": contrast,
}


def other_golds(pair: Pair, of_task: Sequence[Pair], at_most: int | None, seed: int) -> list[str]:
    """The golds of other personas for the pair's task, `at_most` drawn by seed; None: all.

    `of_task`: all pairs of that task.
    """
    others = [p for p in of_task if p.persona.id != pair.persona.id]
    golds = [p.gold for p in sorted(others, key=lambda p: p.persona.id) if p.gold is not None]
    if at_most is None or len(golds) <= at_most:
        return golds
    return Random(derive_seed(seed, "others", pair.id)).sample(golds, at_most)
