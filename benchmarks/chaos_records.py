"""What a run recorded, against what an undisturbed one would have.

    config, data, seed -> the dialogues that are due: pair, K, seed of each (drawn, not played)
    recorded dialogues -> scored again by a scorer that nobody disturbs -> selected again

Texts are not compared: an engine's batches differ with timing, and with them a few tokens.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stargate.algorithm.score_requests import GoldScoring
from stargate.algorithm.selection import select
from stargate.evaluation.playing import plan_evaluation
from stargate.launch.setup import Prepared
from stargate.records.parquet import read_rows
from stargate.records.schemas import KEYS, Row, dialogue_from_row, record_from_row
from stargate.records.store import RunStore, table_files
from stargate.resources.models import context_length
from stargate.rollout.dialogue import plan_dialogues
from stargate.seeds import derive_seed
from stargate.types import Dialogue, DialoguePlan, DialogueScore, Pair, Selection

# What a float32 score may differ by (nats): other requests shared its batch.
SCORE_NOISE = 0.02
# Where a row's identity stands. One dialogue of a pair is selected, and learned from once.
_KEYS = KEYS | dict.fromkeys(("selections", "examples"), ("pair_id",))


# K, seed and the policy's version of a dialogue, as they are drawn before it is played.
Due = tuple[int, int, int]


def due_dialogues(prepared: Prepared) -> dict[str, Due]:
    """All dialogues that a run plays, by id: those of its iterations and of its evaluations."""
    config = prepared.config
    planned: list[tuple[int, Sequence[DialoguePlan]]] = []  # with the policy's version
    for number in range(config.schedule.num_iterations):
        pairs = prepared.train_pairs(number)
        drawn = plan_dialogues(pairs, f"t{number}", config.seed, config.rollout)
        planned += [(number, plans) for plans in drawn]
    if config.evaluation.enabled:
        for version in range(config.schedule.num_iterations + 1):
            planned.append((version, plan_evaluation(version, prepared.test_pairs, config)))
    return {
        plan.dialogue_id: (plan.num_turns, plan.seed, version)
        for version, plans in planned
        for plan in plans
    }


@dataclass(frozen=True)
class Findings:
    """How the records differ from what is due. All zero and empty: not at all."""

    lost: int  # dialogues, or pairs without selection or example, that no drop explains
    duplicated: int  # rows of any table that are there twice
    altered: tuple[str, ...]  # dialogues with another K, seed, number of turns or weights version
    misselected: tuple[str, ...]  # pairs whose selection does not follow from their scores
    misscored: tuple[str, ...]  # dialogues whose score, made again, is another
    largest_difference: float  # nats, between recorded scores and those made again

    @property
    def selection_consistent(self) -> bool:
        return not (self.altered or self.misselected or self.misscored)


async def examine(prepared: Prepared, store: RunStore, num_dropped: int) -> Findings:
    """Compares a finished run's records with what is due. Loads m_0 to score again."""
    due = due_dialogues(prepared)
    scopes = sorted({name.partition("/")[0] for name in due})
    dialogues = {}
    for scope in scopes:
        for dialogue in map(dialogue_from_row, _rows(store, scope, "dialogues")):
            dialogues[dialogue.id] = dialogue
    missing = len(due.keys() - dialogues.keys())
    altered = [
        name
        for name, one in dialogues.items()
        if (one.num_turns, one.seed, one.policy_version) != due.get(name)
        or len(one.turns) != one.num_turns
    ]
    misselected: list[str] = []
    misscored: list[str] = []
    largest = 0.0
    for number in range(prepared.config.schedule.num_iterations):
        pairs = {pair.id: pair for pair in prepared.train_pairs(number)}
        scope = f"t{number}"
        own = {name: d for name, d in dialogues.items() if name.startswith(f"{scope}/")}
        again = await _score_again(prepared, pairs, list(own.values()))
        recorded = {row["dialogue_id"]: row for row in _rows(store, scope, "scores")}
        missing += len(own.keys() - recorded.keys())
        for name, score in again.items():
            if name in recorded:
                difference = abs(recorded[name]["gold_logprob"] - score)
                largest = max(largest, difference)
                misscored += [name] * (difference > SCORE_NOISE)
        found, unselected = _check_selections(prepared, store, scope, recorded, again)
        misselected += found
        missing += unselected
    return Findings(
        lost=max(0, missing - num_dropped),
        duplicated=sum(_num_duplicates(store, scope) for scope in scopes),
        altered=tuple(sorted(altered)),
        misselected=tuple(sorted(misselected)),
        misscored=tuple(sorted(misscored)),
        largest_difference=largest,
    )


def _num_duplicates(store: RunStore, scope: str) -> int:
    num = 0
    for table, keys in _KEYS.items():
        rows = Counter(tuple(row[key] for key in keys) for row in _rows(store, scope, table))
        num += sum(count - 1 for count in rows.values())
    return num


async def _score_again(
    prepared: Prepared, pairs: dict[str, Pair], dialogues: list[Dialogue]
) -> dict[str, float]:
    """Gold log-probs of recorded dialogues under m_0, in this process."""
    from stargate.actors.scoring.scorer import Scorer, ScorerSpec

    scoring = GoldScoring(prepared.views, prepared.chat, context_length(prepared.base_model_dir))
    requests = [scoring.after_dialogue(d.id, pairs[d.pair_id], d.turns) for d in dialogues]
    scorer = Scorer(
        ScorerSpec(
            model_dir=str(prepared.base_model_dir),
            config=prepared.config.scorer,
            num_threads=prepared.placement.of("trainer")[0].threads,
            device=prepared.placement.of("scorer")[0].device,
        )
    )
    scorer.start()
    try:
        results = await scorer.score(requests)
    finally:
        scorer.shutdown()
    return {result.key: result.sums[0] for result in results}


def _check_selections(
    prepared: Prepared,
    store: RunStore,
    scope: str,
    recorded: dict[str, Any],
    again: dict[str, float],
) -> tuple[list[str], int]:
    """Pairs with a selection that does not follow from the scores, and how many have no selection
    or no example.
    """
    config = prepared.config
    selections = {
        one.pair_id: one
        for one in (record_from_row(Selection, row) for row in _rows(store, scope, "selections"))
    }
    examples = {row["pair_id"]: row["dialogue_id"] for row in _rows(store, scope, "examples")}
    seed = derive_seed(config.seed, scope)
    bad = []
    for pair_id, selection in selections.items():
        scores = [DialogueScore(**recorded[name]) for name in selection.candidates]
        expected = select(pair_id, scores, config.algorithm.label, seed)
        as_trained = examples.get(pair_id, selection.dialogue_id) == selection.dialogue_id
        # No other dialogue of the pair scores better, by more than scores are exact.
        best = max(again[name] for name in selection.candidates)
        is_best = again[selection.dialogue_id] >= best - 2 * SCORE_NOISE
        if selection != expected or not as_trained or not is_best:
            bad.append(pair_id)
    pairs = {row["pair_id"] for row in recorded.values()}
    return bad, len(pairs - selections.keys()) + len(selections.keys() - examples.keys())


def _rows(store: RunStore, scope: str, table: str) -> Iterator[Row]:
    """All rows of a table: those that are there twice, too, which the store refuses."""
    for file in table_files(store.root / scope / table):
        yield from read_rows(file)
