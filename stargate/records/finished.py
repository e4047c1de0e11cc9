"""What an iteration has on disk already, so that it is not made again.

A killed run goes on with it, and conditions of an ablation share their first rollouts through it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from stargate.records.schemas import Row, dialogue_from_row, selection_from_row
from stargate.records.store import RunStore
from stargate.types import Dialogue, DialogueScore, Selection


@dataclass(frozen=True, slots=True)
class Finished:
    """Finished records of one scope: dialogues and scores by dialogue id, the rest by pair id."""

    dialogues: Mapping[str, Dialogue]
    scores: dict[str, DialogueScore]
    selections: dict[str, Selection]
    examples: frozenset[str]


def read_finished(store: RunStore, scope: str) -> Finished:
    """Reads the tables of a scope; nothing is finished where there are none."""
    scores = (DialogueScore(**row) for row in store.read(scope, "scores"))
    selections = map(selection_from_row, store.read(scope, "selections"))
    return Finished(
        dialogues=_PackedDialogues(store.read(scope, "dialogues")),
        scores={score.dialogue_id: score for score in scores},
        selections={selection.pair_id: selection for selection in selections},
        examples=frozenset(row["pair_id"] for row in store.read(scope, "examples")),
    )


class _PackedDialogues(Mapping[str, Dialogue]):
    """Dialogues by id, in a fraction of the memory: 125,000 of them as objects take 1 GB."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._packed = {row["id"]: json.dumps(row, ensure_ascii=False).encode() for row in rows}

    def __getitem__(self, key: str) -> Dialogue:
        return dialogue_from_row(json.loads(self._packed[key]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)
