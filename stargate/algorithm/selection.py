"""Which of a pair's N dialogues the Questioner learns from: the best of N, no threshold across
pairs (PAPER 3).

The gold log-prob also rewards a dialogue's mere form (its length, its tone). Contrastive selection
subtracts the mean log-prob of the golds of other personas for the same task after the same
dialogue: what is left is what the dialogue says about THIS person.
"""

from collections.abc import Sequence
from random import Random

from stargate.config.run import SelectionConfig
from stargate.seeds import derive_seed
from stargate.types import DialogueScore, Pair, Selection


def select(
    pair_id: str, scores: Sequence[DialogueScore], config: SelectionConfig, seed: int
) -> Selection:
    """Chooses one of the pair's scored dialogues; ties go to the first.

    `scores` must not be empty.
    """
    if not scores:
        raise ValueError(f"pair {pair_id}: nothing to select from")
    values = [_value(score, config) for score in scores]
    if config.type == "random":
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


def contrast(score: DialogueScore) -> float:
    """Gold log-prob minus the mean of the other personas' golds, in nats.

    Raises ValueError if no other gold was scored.
    """
    if score.other_gold_logprob is None:
        raise ValueError(f"{score.dialogue_id}: no gold of another persona was scored")
    return score.gold_logprob - score.other_gold_logprob


def other_golds(
    pair: Pair, of_task: Sequence[Pair], config: SelectionConfig, seed: int
) -> list[str]:
    """The golds of other personas for the pair's task, at most `max_other_golds` drawn by seed.

    `of_task`: all pairs of that task. Empty unless the selection is contrastive.
    """
    if config.type != "contrastive":
        return []
    others = [p for p in of_task if p.persona.id != pair.persona.id]
    golds = [p.gold for p in sorted(others, key=lambda p: p.persona.id) if p.gold is not None]
    if config.max_other_golds is None or len(golds) <= config.max_other_golds:
        return golds
    return Random(derive_seed(seed, "others", pair.id)).sample(golds, config.max_other_golds)


def _value(score: DialogueScore, config: SelectionConfig) -> float:
    return contrast(score) if config.type == "contrastive" else score.gold_logprob
