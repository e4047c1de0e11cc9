"""What an iteration has on disk already, so that it is not made again.

A killed run goes on with it, and conditions of an ablation share their first rollouts through it.
"""

from dataclasses import dataclass

from stargate.rows import dialogue_from_row, selection_from_row
from stargate.store import RunStore
from stargate.types import Dialogue, DialogueScore, Selection


@dataclass(frozen=True, slots=True)
class Finished:
    """Finished records of one scope: dialogues and scores by dialogue id, the rest by pair id."""

    dialogues: dict[str, Dialogue]
    scores: dict[str, DialogueScore]
    selections: dict[str, Selection]
    examples: frozenset[str]


def read_finished(store: RunStore, scope: str) -> Finished:
    """Reads the tables of a scope; nothing is finished where there are none."""
    dialogues = map(dialogue_from_row, store.read(scope, "dialogues"))
    scores = (DialogueScore(**row) for row in store.read(scope, "scores"))
    selections = map(selection_from_row, store.read(scope, "selections"))
    return Finished(
        dialogues={dialogue.id: dialogue for dialogue in dialogues},
        scores={score.dialogue_id: score for score in scores},
        selections={selection.pair_id: selection for selection in selections},
        examples=frozenset(row["pair_id"] for row in store.read(scope, "examples")),
    )
