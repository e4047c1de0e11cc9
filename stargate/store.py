"""The run directory: what a run writes, and how it is read back.

    RUN/config.yaml environment.json metrics.jsonl summary.json logs/ models/m1/
    RUN/t0/{dialogues,scores,selections,examples}.parquet      one iteration
    RUN/eval-m0/{dialogues,controls,responses,verdicts}.parquet  one evaluation

Rows are durable before `append` returns: they are written as small part files
(RUN/t0/dialogues/part-000000.parquet, many rows in one when many arrive together) under a temporary
name, synced and renamed; `compact` merges the parts of a finished stage into one file. Everything
is plain Parquet and JSON for pandas, DuckDB or pyarrow.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stargate.types import (
    Dialogue,
    DialogueScore,
    Pair,
    Selection,
    StopReason,
    TrainingExample,
    Turn,
)

_IDS = pa.list_(pa.int32())
_TURN = pa.struct(
    [
        ("question", pa.string()),
        ("question_ids", _IDS),
        ("question_stop", pa.string()),
        ("answer", pa.string()),
        ("answer_ids", _IDS),
        ("answer_stop", pa.string()),
        ("elicited", _IDS),
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
            ("loss_mask", pa.list_(pa.int8())),
            ("response", pa.string()),
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

# How long rows are gathered before they are synced together. A turn takes seconds, so nobody waits
# for this.
_GATHER_SECONDS = 0.05

Row = dict[str, Any]


@dataclass
class _Batch:
    rows: list[Row]
    durable: "asyncio.Future[None]"


class RunStore:
    """One run directory. `append` may be called from many coroutines of one event loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tables: dict[tuple[str, str], _Table] = {}

    async def append(self, scope: str, table: str, rows: Sequence[Row]) -> None:
        """Adds rows to a table of a scope ("t0"); they are on disk when this returns."""
        if not rows:
            return
        key = (scope, table)
        if key not in self._tables:
            self._tables[key] = _Table(self.root / scope / table, SCHEMAS[table])
        await self._tables[key].append(rows)

    def read(self, scope: str, table: str) -> Iterator[Row]:
        """All rows of a table, in the order in which they were finished.

        Nothing if there are none.
        """
        for file in table_files(self.root / scope / table):
            for batch in pq.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()

    def compact(self, scope: str) -> None:
        """Merges the parts of every table of a finished scope into one file each."""
        for table in SCHEMAS:
            folder = self.root / scope / table
            files = table_files(folder)
            if not folder.is_dir():
                continue

            def write(target: Path, table: str = table, files: list[Path] = files) -> None:
                with pq.ParquetWriter(target, SCHEMAS[table]) as writer:
                    for file in files:
                        for batch in pq.ParquetFile(file).iter_batches():
                            writer.write_batch(batch)

            write_atomically(folder.with_suffix(".parquet"), write)
            for file in files:
                if file.parent == folder:
                    file.unlink()
            folder.rmdir()
            self._tables.pop((scope, table), None)

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with (self.root / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes RUN/name whole, or not at all."""
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        write_atomically(self.root / name, lambda target: target.write_text(text, "utf-8"))


class _Table:
    """Part files of one table, with group commit:

    rows that arrive while others are being synced go together.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        self._gathering: _Batch | None = None  # rows that the next part will hold
        self._writing: asyncio.Task[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        parts = [int(file.stem.removeprefix("part-")) for file in folder.glob("part-*.parquet")]
        self._next_part = max(parts, default=-1) + 1

    async def append(self, rows: Sequence[Row]) -> None:
        if self._gathering is None:
            self._gathering = _Batch([], asyncio.get_running_loop().create_future())
        batch = self._gathering
        batch.rows.extend(rows)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_batches())
        # Shielded: one cancelled waiter must not cancel what the others wait for.
        await asyncio.shield(batch.durable)

    async def _write_batches(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        while (batch := self._gathering) is not None:
            self._gathering = None
            try:
                await asyncio.to_thread(self._write_part, batch.rows)
            except Exception as error:  # every waiter must hear it, and none may wait for ever
                batch.durable.set_exception(error)
            else:
                batch.durable.set_result(None)

    def _write_part(self, rows: list[Row]) -> None:
        path = self._folder / f"part-{self._next_part:06d}.parquet"
        table = pa.Table.from_pylist(rows, schema=self._schema)
        write_atomically(path, lambda target: pq.write_table(table, target))
        self._next_part += 1


def table_files(folder: Path) -> list[Path]:
    """The files of one table: the merged one, then its parts in order."""
    merged = folder.with_suffix(".parquet")
    parts = sorted(folder.glob("part-*.parquet")) if folder.is_dir() else []
    return ([merged] if merged.is_file() else []) + parts


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write(temporary path)`, syncs and renames: readers see the whole file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def dialogue_row(pair: Pair, dialogue: Dialogue) -> Row:
    """One row of `dialogues`: texts, token ids, stop reasons, what was elicited, policy version."""
    row = asdict(dialogue)
    row |= {
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
            )
            for turn in row["turns"]
        ),
    )


def example_from_row(row: Row) -> TrainingExample:
    """The record of one row of `examples`."""
    return TrainingExample(
        pair_id=row["pair_id"],
        dialogue_id=row["dialogue_id"],
        input_ids=tuple(row["input_ids"]),
        loss_mask=tuple(row["loss_mask"]),
        response=row["response"],
    )


def record_row(record: DialogueScore | Selection | TrainingExample) -> Row:
    """The row of a record whose fields are the table's columns."""
    return asdict(record)
