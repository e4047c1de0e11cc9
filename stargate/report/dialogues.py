"""The dialogues of a run for the browser, with their scores, in a few seconds for 10,000.

    dialogues + scores + selections + examples   of t<t>       -> training dialogues
    dialogues + controls + responses             of eval-m<t>  -> evaluation dialogues

Gains per turn: the gold log-prob after k turns minus that after k - 1; after none it is the pair's
no_dialogue control, after all of them the matched one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stargate.evaluation.elicitation import turn_facts
from stargate.report.reading import evaluation_scopes, iteration_scopes, read_columns
from stargate.report.records import (
    TRAIN,
    DialogueView,
    ResponseView,
    SelectionView,
    Texts,
    TurnView,
)
from stargate.types import Dialogue, Pair, Persona, StopReason, Task, Turn

_DIALOGUE_COLUMNS = (
    "id",
    "pair_id",
    "task_id",
    "persona_id",
    "task",
    "persona_name",
    "index",
    "policy_version",
    "turns.list.element.question",
    "turns.list.element.answer",
    "turns.list.element.elicited",
)
_SCORE_COLUMNS = ("dialogue_id", "gold_logprob", "num_gold_tokens", "other_gold_logprob")
_SELECTION_COLUMNS = ("pair_id", "dialogue_id", "candidates", "candidate_scores")
_CONTROL_COLUMNS = (
    "dialogue_id",
    "pair_id",
    "control",
    "gold_logprob",
    "num_gold_tokens",
    "num_turns",
)
Row = dict[str, Any]
# Indices of the facts that each turn brought out.
FactsOf = Callable[[Row], Sequence[Sequence[int]]]


def read_rows(root: Path, scope: str) -> list[Row]:
    """The dialogues of a scope as rows, by pair and index."""
    rows = read_columns(root, scope, "dialogues", _DIALOGUE_COLUMNS)
    return sorted(rows, key=lambda row: (row["pair_id"], row["index"], row["id"]))


def read_training(
    root: Path, rows: Mapping[int, Sequence[Row]], texts: Texts, facts_of: FactsOf
) -> tuple[list[DialogueView], list[SelectionView]]:
    """All training dialogues given as rows by iteration, and every pair's selection."""
    dialogues: list[DialogueView] = []
    selections: list[SelectionView] = []
    for iteration in iteration_scopes(root):
        scope = f"t{iteration}"
        scores = {
            row["dialogue_id"]: row for row in read_columns(root, scope, "scores", _SCORE_COLUMNS)
        }
        selected = _selections(root, iteration, scores)
        compared_by = {
            candidate: score
            for entry in selected
            for candidate, score in zip(entry.candidates, entry.scores, strict=True)
        }
        chosen = {entry.chosen for entry in selected}
        examples = read_columns(root, scope, "examples", ("dialogue_id", "response"))
        responses = {row["dialogue_id"]: row["response"] for row in examples}
        for row in rows.get(iteration, ()):
            key = row["id"]
            score = scores.get(key, {})
            response = responses.get(key)
            dialogues.append(
                DialogueView(
                    **_common(row, TRAIN, iteration),
                    turns=_turns(row, facts_of(row), texts, ()),
                    gold_logprob=score.get("gold_logprob"),
                    num_gold_tokens=score.get("num_gold_tokens"),
                    other_gold_logprob=score.get("other_gold_logprob"),
                    score=compared_by.get(key),
                    chosen=key in chosen,
                    responses=() if response is None else (ResponseView(iteration, response),),
                )
            )
        selections += selected
    return dialogues, selections


def _selections(root: Path, iteration: int, scores: Mapping[str, Row]) -> list[SelectionView]:
    rows = read_columns(root, f"t{iteration}", "selections", _SELECTION_COLUMNS)
    return [
        SelectionView(
            iteration=iteration,
            pair_id=row["pair_id"],
            chosen=row["dialogue_id"],
            candidates=tuple(row["candidates"]),
            scores=tuple(row["candidate_scores"]),
            gold_logprobs=tuple(
                scores.get(key, {}).get("gold_logprob") for key in row["candidates"]
            ),
            other_gold_logprobs=tuple(
                scores.get(key, {}).get("other_gold_logprob") for key in row["candidates"]
            ),
        )
        for row in sorted(rows, key=lambda row: str(row["pair_id"]))
    ]


def read_evaluated(
    root: Path, source: str, rows: Mapping[int, Sequence[Row]], texts: Texts, facts_of: FactsOf
) -> list[DialogueView]:
    """All dialogues of one evaluation, with their controls, by checkpoint."""
    versions = evaluation_scopes(root)
    controls = {
        version: read_columns(root, f"eval-m{version}", "controls", _CONTROL_COLUMNS)
        for version in versions
    }
    # No checkpoint changes the gold without a dialogue, so it may stand in one scope only.
    without = {
        row["pair_id"]: row["gold_logprob"]
        for version in versions
        for row in controls[version]
        if row["control"] == "no_dialogue"
    }
    dialogues: list[DialogueView] = []
    for version in versions:
        own: dict[str, dict[str, Row]] = defaultdict(dict)
        after: dict[str, dict[int, float]] = defaultdict(dict)
        for row in controls[version]:
            if row["control"] == "after_turn":
                after[row["dialogue_id"]][row["num_turns"]] = row["gold_logprob"]
            elif row["dialogue_id"] is not None:
                own[row["dialogue_id"]][row["control"]] = row
        responses = _responses(root, f"eval-m{version}")
        for row in rows.get(version, ()):
            key, pair_id = row["id"], row["pair_id"]
            matched = own[key].get("matched", {})
            shuffled = own[key].get("shuffled", {})
            ladder = {0: without.get(pair_id), **after[key]}
            ladder[len(row["turns"])] = matched.get("gold_logprob")
            dialogues.append(
                DialogueView(
                    **_common(row, source, version),
                    turns=_turns(row, facts_of(row), texts, gains(ladder, len(row["turns"]))),
                    gold_logprob=matched.get("gold_logprob"),
                    num_gold_tokens=matched.get("num_gold_tokens"),
                    shuffled=shuffled.get("gold_logprob"),
                    no_dialogue=without.get(pair_id),
                    responses=tuple(responses.get(key, ())),
                )
            )
    return dialogues


def gains(ladder: Mapping[int, float | None], num_turns: int) -> list[float | None]:
    """What each turn added, from gold log-probs after 0, 1, ... turns; None where one lacks."""
    steps: list[float | None] = []
    for turn in range(1, num_turns + 1):
        before, after = ladder.get(turn - 1), ladder.get(turn)
        steps.append(None if before is None or after is None else after - before)
    return steps


def told_facts(row: Row) -> list[list[int]]:
    """Facts by turn as the grounded Roleplayer recorded them, each at its first turn only."""
    seen: set[int] = set()
    by_turn: list[list[int]] = []
    for turn in row["turns"]:
        new = [index for index in dict.fromkeys(turn["elicited"] or ()) if index not in seen]
        seen.update(new)
        by_turn.append(new)
    return by_turn


def stated_facts_of(texts: Texts) -> FactsOf:
    """Facts by turn as the answers' own words tell them, for a Roleplayer without grounding."""

    def facts(row: Row) -> Sequence[Sequence[int]]:
        persona = texts.personas.get(row["persona_id"])
        if persona is None or not persona.facts:
            return [() for _ in row["turns"]]
        who = Persona(persona.id, persona.name, persona.text or "", "", persona.facts)
        pair = Pair(Task(row["task_id"], row["task"], ""), who, None)
        stop = StopReason.STOP
        turns = tuple(
            Turn(turn["question"], (), stop, turn["answer"], (), stop) for turn in row["turns"]
        )
        dialogue = Dialogue(row["id"], pair.id, row["index"], len(turns), 0, 0, turns)
        return [given.elicited for given in turn_facts(pair, dialogue, grounded=False)]

    return facts


def _common(row: Row, source: str, version: int) -> dict[str, Any]:
    return {
        "id": row["id"],
        "source": source,
        "version": version,
        "pair_id": row["pair_id"],
        "task_id": row["task_id"],
        "persona_id": row["persona_id"],
        "index": row["index"],
    }


def _turns(
    row: Row, facts: Sequence[Sequence[int]], texts: Texts, steps: Sequence[float | None]
) -> tuple[TurnView, ...]:
    persona_id = row["persona_id"]
    return tuple(
        TurnView(
            question=turn["question"],
            answer=turn["answer"],
            is_question="?" in turn["question"],
            elicited=tuple(given),
            facts=tuple(texts.fact(persona_id, index) for index in given),
            gain=steps[number] if steps else None,
        )
        for number, (turn, given) in enumerate(zip(row["turns"], facts, strict=True))
    )


def _responses(root: Path, scope: str) -> dict[str, list[ResponseView]]:
    found: dict[str, list[ResponseView]] = defaultdict(list)
    columns = ("dialogue_id", "responder_version", "text")
    for row in read_columns(root, scope, "responses", columns):
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
    share = room // max(len(rows), 1)
    kept: dict[int, list[Row]] = {}
    for iteration, found in rows.items():
        by_pair: dict[str, list[Row]] = defaultdict(list)
        for row in found:
            by_pair[row["pair_id"]].append(row)
        kept[iteration] = []
        for of_pair in _spread(list(by_pair.values())):
            if len(kept[iteration]) + len(of_pair) > share:
                break
            kept[iteration] += of_pair
    return kept, total - sum(map(len, kept.values()))


def _spread(groups: Sequence[list[Row]]) -> Iterable[list[Row]]:
    """All groups in an order whose every beginning is spread over the whole list."""
    # Steps of the golden ratio visit every task and persona early, whatever the list's order.
    order = sorted(range(len(groups)), key=lambda place: (0.6180339887 * place) % 1.0)
    return (groups[place] for place in order)
