"""The dialogues of a run for the browser, with their scores, in a few seconds for 10,000.

    dialogues + scores + selections + examples   of t<t>       -> training dialogues
    dialogues + controls + responses             of eval-m<t>  -> evaluation dialogues

Gains per turn: the gold log-prob after k turns minus that after k - 1; after none it is the pair's
no_dialogue control, after all of them the matched one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from stargate.errors import DataError
from stargate.evaluation.controls import gains
from stargate.evaluation.elicitation import turn_facts
from stargate.records.parquet import file_problem
from stargate.records.schemas import Row
from stargate.records.store import table_files, table_rows
from stargate.report.records import TRAIN, DialogueView, ResponseView, SelectionView, TurnView
from stargate.types import Dialogue, Pair, StopReason, Turn

_DIALOGUE_COLUMNS = (
    *("id", "pair_id", "task_id", "persona_id", "task", "persona_name", "index", "policy_version"),
    "elicited",
    *(f"turns.list.element.{name}" for name in ("question", "answer", "elicited")),
)
_SCORE_COLUMNS = ("dialogue_id", "gold_logprob", "other_gold_logprob")
_SELECTION_COLUMNS = ("pair_id", "dialogue_id", "candidates", "candidate_scores")
_CONTROL_COLUMNS = ("dialogue_id", "pair_id", "control", "gold_logprob", "num_turns")
# Indices of the facts that each turn brought out.
FactsOf = Callable[[Row, Pair], Sequence[Sequence[int]]]
Pairs = Mapping[str, Pair]


def read_dialogues(root: Path, scope: str) -> list[Row]:
    """The dialogues of a scope as rows, by pair and index."""
    rows = _read(root, scope, "dialogues", _DIALOGUE_COLUMNS)
    return sorted(rows, key=lambda row: (row["pair_id"], row["index"], row["id"]))


def _read(root: Path, scope: str, table: str, columns: Sequence[str]) -> list[Row]:
    """Rows of one table with these columns only: token ids are most of a table's bytes, and the
    report needs none. Nothing if there is no table. Raises DataError.
    """
    for file in table_files(root / scope / table):
        if (problem := file_problem(file)) is not None:
            raise DataError(f"{file}: {problem}")
    return list(table_rows(root / scope / table, columns))


def read_training(
    root: Path, iteration: int, rows: Iterable[Row], pairs: Pairs, facts_of: FactsOf
) -> tuple[list[DialogueView], list[SelectionView]]:
    """The dialogues of one iteration that are given as rows, and every pair's selection."""
    scope = f"t{iteration}"
    scores = {row["dialogue_id"]: row for row in _read(root, scope, "scores", _SCORE_COLUMNS)}
    selections = _selections(root, iteration, scores)
    compared_by = {
        candidate: score
        for entry in selections
        for candidate, score in zip(entry.candidates, entry.scores, strict=True)
    }
    chosen = {entry.chosen for entry in selections}
    examples = _read(root, scope, "examples", ("dialogue_id", "response"))
    responses = {row["dialogue_id"]: row["response"] for row in examples}
    dialogues = []
    for row in rows:
        key, pair = row["id"], pairs[row["pair_id"]]
        response = responses.get(key)
        dialogues.append(
            DialogueView(
                key,
                TRAIN,
                iteration,
                pair,
                row["index"],
                _turns(row, facts_of(row, pair), [None] * len(row["turns"])),
                gold_logprob=scores.get(key, {}).get("gold_logprob"),
                score=compared_by.get(key),
                chosen=key in chosen,
                responses=() if response is None else (ResponseView(iteration, response),),
            )
        )
    return dialogues, selections


def _selections(root: Path, iteration: int, scores: Mapping[str, Row]) -> list[SelectionView]:
    rows = _read(root, f"t{iteration}", "selections", _SELECTION_COLUMNS)
    found = []
    for row in sorted(rows, key=lambda row: str(row["pair_id"])):
        scored = [scores.get(key, {}) for key in row["candidates"]]
        found.append(
            SelectionView(
                iteration,
                row["pair_id"],
                chosen=row["dialogue_id"],
                candidates=tuple(row["candidates"]),
                scores=tuple(row["candidate_scores"]),
                gold_logprobs=tuple(score.get("gold_logprob") for score in scored),
                other_gold_logprobs=tuple(score.get("other_gold_logprob") for score in scored),
            )
        )
    return found


def read_evaluated(
    root: Path, source: str, rows: Mapping[int, Sequence[Row]], pairs: Pairs, facts_of: FactsOf
) -> list[DialogueView]:
    """All dialogues of one evaluation, given by checkpoint, with their controls."""
    controls = {
        version: _read(root, f"eval-m{version}", "controls", _CONTROL_COLUMNS) for version in rows
    }
    # No checkpoint changes the gold without a dialogue, so it may stand in one scope only.
    without = {
        row["pair_id"]: row["gold_logprob"]
        for version in rows
        for row in controls[version]
        if row["control"] == "no_dialogue"
    }
    dialogues: list[DialogueView] = []
    for version, of_version in rows.items():
        # By dialogue: the controls by name, and the gold log-probs after its first turns.
        own: dict[str, dict[str, float]] = defaultdict(dict)
        after: dict[str, dict[int, float]] = defaultdict(dict)
        for row in controls[version]:
            if row["control"] == "after_turn":
                after[row["dialogue_id"]][row["num_turns"]] = row["gold_logprob"]
            elif row["dialogue_id"] is not None:
                own[row["dialogue_id"]][row["control"]] = row["gold_logprob"]
        responses = _responses(root, f"eval-m{version}")
        for row in of_version:
            key, pair, num_turns = row["id"], pairs[row["pair_id"]], len(row["turns"])
            alone, matched = without.get(row["pair_id"]), own[key].get("matched")
            ladder = {0: alone, **after[key], num_turns: matched}
            dialogues.append(
                DialogueView(
                    key,
                    source,
                    version,
                    pair,
                    row["index"],
                    _turns(row, facts_of(row, pair), gains(ladder, num_turns)),
                    gold_logprob=matched,
                    shuffled=own[key].get("shuffled"),
                    no_dialogue=alone,
                    responses=tuple(responses.get(key, ())),
                )
            )
    return dialogues


def told_facts(row: Row, pair: Pair) -> list[list[int]]:
    """Facts by turn as the grounded Roleplayer recorded them, each at its first turn only, without
    those that it took back.
    """
    left = set(row["elicited"])
    by_turn: list[list[int]] = []
    for turn in row["turns"]:
        new = [index for index in dict.fromkeys(turn["elicited"] or ()) if index in left]
        left.difference_update(new)
        by_turn.append(new)
    return by_turn


def stated_facts(row: Row, pair: Pair) -> list[Sequence[int]]:
    """Facts by turn as the answers' own words tell them, for a Roleplayer without grounding."""
    if not pair.persona.facts:
        return [() for _ in row["turns"]]
    stop = StopReason.STOP
    turns = tuple(
        Turn(turn["question"], (), stop, turn["answer"], (), stop) for turn in row["turns"]
    )
    dialogue = Dialogue(row["id"], pair.id, row["index"], len(turns), 0, 0, turns)
    return [given.elicited for given in turn_facts(pair, dialogue, grounded=False)]


def _turns(
    row: Row, facts: Sequence[Sequence[int]], steps: Sequence[float | None]
) -> tuple[TurnView, ...]:
    return tuple(
        TurnView(turn["question"], turn["answer"], tuple(given), gain)
        for turn, given, gain in zip(row["turns"], facts, steps, strict=True)
    )


def _responses(root: Path, scope: str) -> dict[str, list[ResponseView]]:
    found: dict[str, list[ResponseView]] = defaultdict(list)
    columns = ("dialogue_id", "responder_version", "text")
    for row in _read(root, scope, "responses", columns):
        found[row["dialogue_id"]].append(ResponseView(row["responder_version"], row["text"]))
    for responses in found.values():
        responses.sort(key=lambda response: response.version)
    return found


def keep_whole_pairs(
    rows: Mapping[int, Sequence[Row]], room: int
) -> tuple[dict[int, list[Row]], int]:
    """At most `room` training dialogues, whole pairs only, evenly over iterations; and how many
    were left out.
    """
    total = sum(map(len, rows.values()))
    if total <= room:
        return {iteration: list(found) for iteration, found in rows.items()}, 0
    share = room // len(rows)
    kept: dict[int, list[Row]] = {}
    for iteration, found in rows.items():
        by_pair: dict[str, list[Row]] = defaultdict(list)
        for row in found:
            by_pair[row["pair_id"]].append(row)
        kept[iteration] = []
        # Steps of the golden ratio visit every task and persona early, whatever the list's order.
        spread = sorted(range(len(by_pair)), key=lambda place: (0.6180339887 * place) % 1.0)
        pairs = list(by_pair.values())
        for of_pair in (pairs[place] for place in spread):
            if len(kept[iteration]) + len(of_pair) > share:
                break
            kept[iteration] += of_pair
    return kept, total - sum(map(len, kept.values()))
