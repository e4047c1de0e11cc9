"""An algorithm from outside: what a new one has to write, and that a run plays with it on fakes.

To ship it: this class in stargate/algorithm, a variant in stargate/config/algorithm.py, its name in
stargate/algorithm/base.py, a row in docs/architecture.md.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from stargate.algorithm.base import Algorithm, Drop, Needs, ScoredGroup
from stargate.errors import RecordDropped
from stargate.text.chat import ChatFormat
from stargate.text.views import Views
from stargate.training_loop import run_iteration
from stargate.types import (
    Dialogue,
    ScoreRequest,
    ScoreResult,
    Selection,
    TrainingExample,
)
from tests.fakes.scripted import ScriptedScore, byte_chat
from tests.unit.test_pair_steps import PAIRS, RecordingTrain, roles, run_context
from tests.unit.text.test_views import VIEWS


class TurnPreference:
    """Of a pair's dialogues the one whose first turn gained most is chosen, the other rejected.

    Both become examples of one group; a token counts as much as its turn gained.
    """

    needs = Needs(num_other_golds=1, turn_scores=True, reference_logprobs=True)

    def __init__(self, views: Views, chat: ChatFormat) -> None:
        self._views, self._chat = views, chat

    def select(self, group: ScoredGroup, seed: int) -> Sequence[Selection]:
        gains = [self._gains(group, dialogue)[0] for dialogue in group.dialogues]
        ids = tuple(dialogue.id for dialogue in group.dialogues)
        best, worst = gains.index(max(gains)), gains.index(min(gains))
        values = tuple(gains)
        return [Selection(group.pair.id, ids[i], gains[i], ids, values) for i in (best, worst)]

    def examples(self, group: ScoredGroup, drop: Drop) -> Sequence[TrainingExample]:
        chosen, rejected = group.selections
        if chosen.dialogue_id == rejected.dialogue_id:
            drop(RecordDropped("no_preference", group.pair.id, "all gained the same"))
            return []
        return [
            self._example(group, chosen, "chosen"),
            self._example(group, rejected, "rejected"),
        ]

    def _example(self, group: ScoredGroup, selection: Selection, side: str) -> TrainingExample:
        dialogue = group.dialogue(selection.dialogue_id)
        masked = self._chat.masked_ids(self._views.questions_only(group.pair, dialogue.turns))
        gain = self._gains(group, dialogue)[0]
        made = TrainingExample(
            pair_id=group.pair.id,
            dialogue_id=dialogue.id,
            input_ids=masked.ids,
            weights=tuple(gain * learned for learned in masked.mask),
            response="",
            group=group.pair.id,
        )
        return replace(made, side=side)  # type: ignore[arg-type]

    def _gains(self, group: ScoredGroup, dialogue: Dialogue) -> list[float]:
        scores = group.turn_scores[dialogue.id]
        return [
            (after.own - before.own) - (after.others[0] - before.others[0])
            for before, after in pairwise(scores)
        ]


class GoldGrows(ScriptedScore):
    """Every turn brings 1 nat; in dialogue 1 the first brings 4, in dialogue 2 nothing.

    Golds of others stay where they were.
    """

    def __init__(self) -> None:
        super().__init__(lambda request: -0.5)  # the examples, under m_0

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        return [
            ScoreResult(result.key, ((_own(result.key),), (-20.0,)))
            if "@" in result.key
            else result
            for result in await super().__call__(requests)
        ]


def _own(key: str) -> float:
    dialogue, _, turn = key.partition("@")
    first = {"0": 1.0, "1": 4.0, "2": 0.0}[dialogue[-1]]
    return -20.0 + (first + int(turn) - 1 if int(turn) else 0.0)


def test_a_new_algorithm_needs_no_other_file(tmp_path: Path) -> None:
    algorithm: Algorithm = TurnPreference(VIEWS, byte_chat())
    context = replace(run_context(tmp_path, overlap=True), algorithm=algorithm)
    score = GoldGrows()
    parts = roles(score=score)
    asyncio.run(run_iteration(0, PAIRS, parts, context))
    train = parts.train
    assert isinstance(train, RecordingTrain)
    of_pair = [e for e in train.examples if e.pair_id == PAIRS[0].id]
    assert [(e.dialogue_id[-1], e.side, max(e.weights)) for e in of_pair] == [
        ("1", "chosen", 4.0),
        ("2", "rejected", 0.0),
    ]
    assert {e.group for e in of_pair} == {PAIRS[0].id}
    for example in train.examples:
        assert example.reference_logprobs is not None
        assert example.reference_logprobs[0] == 0.0
        assert len(example.reference_logprobs) == len(example.input_ids)
    # Turns 0, 1 and 2 of three dialogues of four pairs, each with one other gold.
    rows = list(context.store.read("t0", "turn_scores"))
    assert len(rows) == 4 * 3 * 3
    of_dialogue = [row for row in rows if row["dialogue_id"] == f"t0/{PAIRS[0].id}/1"]
    assert [(row["turn"], row["own"], row["others"]) for row in of_dialogue] == [
        (0, -20.0, [-20.0]),
        (1, -16.0, [-20.0]),
        (2, -15.0, [-20.0]),
    ]
    # What the first turn is compared with has the form of a turn.
    before = next(r for r in score.requests if r.key == f"t0/{PAIRS[0].id}/1@0")
    assert "None. | t1?" in "".join(map(chr, before.context_ids))
    scores = {row["dialogue_id"]: row["gold_logprob"] for row in context.store.read("t0", "scores")}
    assert scores[f"t0/{PAIRS[0].id}/1"] == -15.0


def test_what_is_on_disk_is_not_scored_again(tmp_path: Path) -> None:
    algorithm = TurnPreference(VIEWS, byte_chat())
    context = replace(run_context(tmp_path), algorithm=algorithm)
    first, again = GoldGrows(), GoldGrows()
    asyncio.run(run_iteration(0, PAIRS, roles(score=first), context))
    parts = roles(score=again)
    asyncio.run(run_iteration(0, PAIRS, parts, replace(context, algorithm=algorithm)))
    assert first.requests and not again.requests
