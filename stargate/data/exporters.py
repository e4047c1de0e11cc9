"""Writes a dataset in other shapes.

jsonl parquet  tasks, personas and golds: a dataset folder again, read like any other
hf             the same three as one `datasets` folder: load_from_disk(OUT)["golds"]
sft            OUT/SPLIT.jsonl, one {"messages": [user, assistant]} per pair with a gold: the
               conversational format of TRL's SFTTrainer, as it is
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stargate.data.dataset import Dataset
from stargate.data.reading import KINDS, require_datasets
from stargate.data.writing import dataset_rows, new_folder, write_jsonl
from stargate.errors import DataError
from stargate.text.prompts import PromptSet
from stargate.text.views import Views
from stargate.types import Pair

Target = Literal["jsonl", "parquet", "hf"]


def export_dataset(
    dataset: Dataset, out: Path, target: Target, source: Path | None = None, force: bool = False
) -> dict[str, int]:
    """Writes tasks, personas and golds to the new folder `out` as jsonl, parquet or hf.

    Returns how many of each. Raises DataError.
    """
    with new_folder(out, force=force, source=source) as folder:
        if target == "jsonl":
            return {
                kind: write_jsonl(folder / f"{kind}.jsonl", dataset_rows(dataset, kind))
                for kind in KINDS
            }
        tables = {kind: _table(dataset, kind) for kind in KINDS}
        counts = {kind: table.num_rows for kind, table in tables.items()}
        tables = {kind: table for kind, table in tables.items() if counts[kind]}
        if target == "hf":
            datasets = require_datasets()
            parts = {kind: datasets.Dataset(table) for kind, table in tables.items()}
            datasets.DatasetDict(parts).save_to_disk(str(folder))
        else:
            import pyarrow.parquet as pq

            for kind, table in tables.items():
                pq.write_table(table, folder / f"{kind}.parquet")
        return counts


def _table(dataset: Dataset, kind: str) -> Any:
    """The tasks, personas or golds as an Arrow table."""
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    columns = {
        "tasks": {
            **{"id": text, "text": text, "split": text},
            **{"needs_question": pa.bool_(), "gold": text},
        },
        "personas": {
            **{"id": text, "name": text, "text": text, "split": text},
            **{"facts": texts, "fact_origins": texts},
            **{"importance": pa.list_(pa.int32()), "task_id": text},
        },
        "golds": {
            **{"task_id": text, "persona_id": text, "text": text},
            "facts_used": pa.list_(pa.int32()),
        },
    }
    schema = pa.schema(columns[kind].items())
    return pa.Table.from_pylist(list(dataset_rows(dataset, kind)), schema=schema)


def export_sft(
    dataset: Dataset,
    out: Path,
    prompts: PromptSet,
    context: Literal["opening", "persona"] = "opening",
    source: Path | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Writes one file of conversations per split to the new folder `out`; returns how many each.

    The user's turn is the opening ("My name is ...", the task), with `context` "persona" also the
    profile; the assistant's is the gold. Raises DataError when no pair has a gold.
    """
    pairs = {split: dataset.pairs_with_gold(split) for split in dataset.splits}
    if not any(pairs.values()):
        raise DataError(f"{dataset.name}: no pair has a gold: there is nothing to train on")
    views = Views(prompts)
    with new_folder(out, force=force, source=source) as folder:
        return {
            split: write_jsonl(folder / f"{split}.jsonl", _conversations(views, some, context))
            for split, some in pairs.items()
        }


def _conversations(views: Views, pairs: list[Pair], context: str) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        told = context == "persona"
        before = views.with_persona(pair) if told else views.without_instruction(pair, ())
        turns = [{"role": message.role, "content": message.text} for message in before]
        yield {"messages": [*turns, {"role": "assistant", "content": pair.gold}]}
