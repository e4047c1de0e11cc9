"""The tables of a run directory: their columns, and the rows of the records.

    dialogues, scores, turn_scores, selections, examples    of an iteration
    dialogues, controls, responses, verdicts                of an evaluation

New columns go to the end of a schema and must be optional: tables of earlier versions lack them.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from stargate.types import (
    Dialogue,
    DialogueScore,
    Pair,
    Selection,
    StopReason,
    TrainingExample,
    Turn,
    TurnScore,
)

Row = dict[str, Any]

_IDS = pa.list_(pa.int32())
_LOGPROBS = pa.list_(pa.float32())
_TURN = pa.struct(
    [
        ("question", pa.string()),
        ("question_ids", _IDS),
        ("question_stop", pa.string()),
        ("answer", pa.string()),
        ("answer_ids", _IDS),
        ("answer_stop", pa.string()),
        ("elicited", _IDS),
        ("question_logprobs", _LOGPROBS),
    ]
)
SCHEMAS: dict[str, pa.Schema] = {
    "dialogues": pa.schema(
        [
            ("id", pa.string()),
            ("pair_id", pa.string()),
            ("task_id", pa.string()),
            ("persona_id", pa.string()),
            ("task", pa.string()),
            ("persona_name", pa.string()),
            ("index", pa.int32()),
            ("num_turns", pa.int32()),
            ("seed", pa.int64()),
            ("policy_version", pa.int32()),
            ("seconds", pa.float64()),
            ("elicited", _IDS),
            ("turns", pa.list_(_TURN)),
        ]
    ),
    "scores": pa.schema(
        [
            ("dialogue_id", pa.string()),
            ("pair_id", pa.string()),
            ("gold_logprob", pa.float64()),
            ("num_gold_tokens", pa.int32()),
            ("other_gold_logprob", pa.float64()),
            ("num_other_golds", pa.int32()),
        ]
    ),
    "turn_scores": pa.schema(
        [
            ("dialogue_id", pa.string()),
            ("turn", pa.int32()),
            ("own", pa.float64()),
            ("others", pa.list_(pa.float64())),
        ]
    ),
    "selections": pa.schema(
        [
            ("pair_id", pa.string()),
            ("dialogue_id", pa.string()),
            ("gold_logprob", pa.float64()),
            ("candidates", pa.list_(pa.string())),
            ("candidate_scores", pa.list_(pa.float64())),
        ]
    ),
    "examples": pa.schema(
        [
            ("pair_id", pa.string()),
            ("dialogue_id", pa.string()),
            ("input_ids", _IDS),
            ("weights", pa.list_(pa.float32())),
            ("response", pa.string()),
            ("behaviour_logprobs", _LOGPROBS),
            ("reference_logprobs", _LOGPROBS),
            ("group", pa.string()),
            ("side", pa.string()),
        ]
    ),
    "controls": pa.schema(
        [
            ("dialogue_id", pa.string()),
            ("pair_id", pa.string()),
            ("control", pa.string()),
            ("other_dialogue_id", pa.string()),
            ("gold_logprob", pa.float64()),
            ("num_gold_tokens", pa.int32()),
            ("num_turns", pa.int32()),
        ]
    ),
    "responses": pa.schema(
        [
            ("dialogue_id", pa.string()),
            ("pair_id", pa.string()),
            ("responder_version", pa.int32()),
            ("text", pa.string()),
            ("num_tokens", pa.int32()),
            ("stop", pa.string()),
        ]
    ),
    "verdicts": pa.schema(
        [
            ("comparison", pa.string()),
            ("task_id", pa.string()),
            ("persona_id", pa.string()),
            ("candidate", pa.string()),
            ("baseline", pa.string()),
            ("order", pa.string()),
            ("verdict", pa.string()),
            ("reply", pa.string()),
            ("candidate_text", pa.string()),
            ("baseline_text", pa.string()),
            ("candidate_length", pa.int32()),
            ("baseline_length", pa.int32()),
        ]
    ),
}


def dialogue_row(pair: Pair, dialogue: Dialogue) -> Row:
    """One row of `dialogues`: texts, token ids, stop reasons, what was elicited, policy version."""
    # Not dataclasses.asdict: it copies every token id, for a driver too slow at many dialogues.
    row = _shallow(dialogue)
    row |= {
        "turns": [_shallow(turn) for turn in dialogue.turns],
        "task_id": pair.task.id,
        "persona_id": pair.persona.id,
        "task": pair.task.text,
        "persona_name": pair.persona.name,
        "elicited": dialogue.elicited,
    }
    return row


def dialogue_from_row(row: Row) -> Dialogue:
    """The record of one row of `dialogues`."""
    return Dialogue(
        id=row["id"],
        pair_id=row["pair_id"],
        index=row["index"],
        num_turns=row["num_turns"],
        seed=row["seed"],
        policy_version=row["policy_version"],
        seconds=row["seconds"],
        turns=tuple(
            Turn(
                question=turn["question"],
                question_ids=tuple(turn["question_ids"]),
                question_stop=StopReason(turn["question_stop"]),
                answer=turn["answer"],
                answer_ids=tuple(turn["answer_ids"]),
                answer_stop=StopReason(turn["answer_stop"]),
                elicited=tuple(turn["elicited"]),
                question_logprobs=_tuple(turn.get("question_logprobs")),
            )
            for turn in row["turns"]
        ),
    )


def selection_from_row(row: Row) -> Selection:
    """The record of one row of `selections`."""
    return Selection(
        pair_id=row["pair_id"],
        dialogue_id=row["dialogue_id"],
        gold_logprob=row["gold_logprob"],
        candidates=tuple(row["candidates"]),
        candidate_scores=tuple(row["candidate_scores"]),
    )


def example_from_row(row: Row) -> TrainingExample:
    """The record of one row of `examples`."""
    return TrainingExample(
        pair_id=row["pair_id"],
        dialogue_id=row["dialogue_id"],
        input_ids=tuple(row["input_ids"]),
        weights=tuple(row["weights"]),
        response=row["response"],
        behaviour_logprobs=_tuple(row["behaviour_logprobs"]),
        reference_logprobs=_tuple(row["reference_logprobs"]),
        group=row["group"],
        side=row["side"],
    )


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def record_row(record: DialogueScore | TurnScore | Selection | TrainingExample) -> Row:
    """The row of a record whose fields are the table's columns."""
    return _shallow(record)


def _shallow(record: Any) -> Row:
    """A record's fields by name, its values as they are."""
    return {name: getattr(record, name) for name in record.__match_args__}
