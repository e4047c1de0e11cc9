"""The tables of a run directory: their columns, and the rows of the records.

    dialogues, scores, turn_scores, fact_values, selections, examples    of an iteration
    dialogues, question_fits, controls, responses, verdicts              of an evaluation

New columns go to the end of a schema and must be optional: tables of earlier versions lack them.
"""

from typing import Any, TypeVar

import pyarrow as pa

from stargate.types import Dialogue, Pair, StopReason, Turn

Row = dict[str, Any]
_RecordT = TypeVar("_RecordT")

_TEXT, _INT, _FLOAT, _IDS = pa.string(), pa.int32(), pa.float64(), pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float64())
_LOGPROBS = pa.list_(pa.float32())
_TURN = pa.struct(
    {
        "question": _TEXT,
        "question_ids": _IDS,
        "question_stop": _TEXT,
        "answer": _TEXT,
        "answer_ids": _IDS,
        "answer_stop": _TEXT,
        "elicited": _IDS,
        "question_logprobs": _LOGPROBS,
        "retracted": _IDS,
    }
)
SCHEMAS: dict[str, pa.Schema] = {
    "dialogues": pa.schema(
        {
            "id": _TEXT,
            "pair_id": _TEXT,
            "task_id": _TEXT,
            "persona_id": _TEXT,
            "task": _TEXT,
            "persona_name": _TEXT,
            "index": _INT,
            "num_turns": _INT,
            "seed": pa.int64(),
            "policy_version": _INT,
            "seconds": _FLOAT,
            "elicited": _IDS,
            "turns": pa.list_(_TURN),
        }
    ),
    "scores": pa.schema(
        {
            "dialogue_id": _TEXT,
            "pair_id": _TEXT,
            "gold_logprob": _FLOAT,
            "num_gold_tokens": _INT,
            "other_gold_logprob": _FLOAT,
            "num_other_golds": _INT,
        }
    ),
    "turn_scores": pa.schema(
        {"dialogue_id": _TEXT, "turn": _INT, "own": _FLOAT, "others": _FLOATS}
    ),
    "fact_values": pa.schema({"pair_id": _TEXT, "values": _FLOATS}),
    "selections": pa.schema(
        {
            "pair_id": _TEXT,
            "dialogue_id": _TEXT,
            "gold_logprob": _FLOAT,
            "candidates": pa.list_(_TEXT),
            "candidate_scores": _FLOATS,
        }
    ),
    "examples": pa.schema(
        {
            "pair_id": _TEXT,
            "dialogue_id": _TEXT,
            "input_ids": _IDS,
            "weights": pa.list_(pa.float32()),
            "response": _TEXT,
            "behaviour_logprobs": _LOGPROBS,
            "reference_logprobs": _LOGPROBS,
            "group": _TEXT,
            "side": _TEXT,
        }
    ),
    "question_fits": pa.schema(
        {"dialogue_id": _TEXT, "pair_id": _TEXT, "task_id": _TEXT, "logprob": _FLOAT}
    ),
    "controls": pa.schema(
        {
            "dialogue_id": _TEXT,
            "pair_id": _TEXT,
            "control": _TEXT,
            "other_dialogue_id": _TEXT,
            "gold_logprob": _FLOAT,
            "num_gold_tokens": _INT,
            "num_turns": _INT,
        }
    ),
    "responses": pa.schema(
        {
            "dialogue_id": _TEXT,
            "pair_id": _TEXT,
            "responder_version": _INT,
            "text": _TEXT,
            "num_tokens": _INT,
            "stop": _TEXT,
        }
    ),
    "verdicts": pa.schema(
        {
            "comparison": _TEXT,
            "task_id": _TEXT,
            "persona_id": _TEXT,
            "candidate": _TEXT,
            "baseline": _TEXT,
            "order": _TEXT,
            "verdict": _TEXT,
            "reply": _TEXT,
            "candidate_text": _TEXT,
            "baseline_text": _TEXT,
            "candidate_length": _INT,
            "baseline_length": _INT,
        }
    ),
}

# The columns that name a row of a table; `examples` has none: a dialogue may give several.
KEYS: dict[str, tuple[str, ...]] = {
    "dialogues": ("id",),
    "scores": ("dialogue_id",),
    "turn_scores": ("dialogue_id", "turn"),
    "fact_values": ("pair_id",),
    "selections": ("pair_id", "dialogue_id"),
    "question_fits": ("dialogue_id", "task_id"),
    "controls": ("control", "pair_id", "dialogue_id", "num_turns"),
    "responses": ("dialogue_id", "responder_version"),
    "verdicts": ("comparison", "task_id", "persona_id", "candidate", "baseline", "order"),
}


def dialogue_row(pair: Pair, dialogue: Dialogue) -> Row:
    """One row of `dialogues`: texts, token ids, stop reasons, what was elicited, policy version."""
    return record_row(dialogue) | {
        "turns": [record_row(turn) for turn in dialogue.turns],
        "task_id": pair.task.id,
        "persona_id": pair.persona.id,
        "task": pair.task.text,
        "persona_name": pair.persona.name,
        "elicited": dialogue.elicited,
    }


def dialogue_from_row(row: Row) -> Dialogue:
    """The record of one row of `dialogues`."""
    turns = []
    for turn in row["turns"]:
        stops = {name: StopReason(turn[name]) for name in ("question_stop", "answer_stop")}
        turns.append(record_from_row(Turn, turn | stops))
    return record_from_row(Dialogue, row | {"turns": turns})


def record_row(record: Any) -> Row:
    """The row of a record whose fields are the table's columns."""
    # Not dataclasses.asdict: it copies every token id, for a driver too slow at many dialogues.
    return {name: getattr(record, name) for name in record.__match_args__}


def record_from_row(kind: type[_RecordT], row: Row) -> _RecordT:
    """The record of a row; fields whose columns an earlier version lacked have their defaults."""
    names: tuple[str, ...] = kind.__match_args__  # type: ignore[attr-defined]  # a dataclass's
    values = {name: row[name] for name in names if name in row}
    lists = {name: tuple(value) for name, value in values.items() if type(value) is list}
    return kind(**{**values, **lists})
