"""Which of a pair's N dialogues the Questioner learns from (PAPER 3:

the best of N, no threshold across pairs).
"""

from collections.abc import Sequence
from random import Random

from stargate.config import SelectionConfig
from stargate.seeds import derive_seed
from stargate.types import DialogueScore, Selection


def select(
    pair_id: str, scores: Sequence[DialogueScore], config: SelectionConfig, seed: int
) -> Selection:
    """Chooses one of the pair's scored dialogues; ties go to the first.

    `scores` must not be empty.
    """
    if not scores:
        raise ValueError(f"pair {pair_id}: nothing to select from")
    if config.type == "random":
        chosen = Random(derive_seed(seed, "select", pair_id)).choice(list(scores))
    else:
        chosen = max(scores, key=lambda score: score.gold_logprob)
    return Selection(
        pair_id=pair_id,
        dialogue_id=chosen.dialogue_id,
        gold_logprob=chosen.gold_logprob,
        candidates=tuple(score.dialogue_id for score in scores),
        candidate_scores=tuple(score.gold_logprob for score in scores),
    )
