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
from stargate.data.writing import (
    arrow_schema,
    dataset_rows,
    new_folder,
    write_jsonl,
    write_parquet,
)
from stargate.errors import DataError
from stargate.text.prompts import PromptSet
from stargate.text.views import Views
from stargate.types import Pair

FORMATS = ("jsonl", "parquet", "hf", "sft")


def export_dataset(
    dataset: Dataset, out: Path, target: str, source: Path | None = None, force: bool = False
) -> dict[str, int]:
    """Writes tasks, personas and golds to the new folder `out` as jsonl, parquet or hf.

    Returns how many of each. Raises DataError.
    """
    if target not in ("jsonl", "parquet", "hf"):
        raise DataError(f"no such format {target!r}; known: {', '.join(FORMATS)}")
    with new_folder(out, force=force, source=source) as folder:
        if target == "hf":
            return _write_hf(dataset, folder)
        return {
            kind: write_jsonl(folder / f"{kind}.jsonl", dataset_rows(dataset, kind))
            if target == "jsonl"
            else write_parquet(folder / f"{kind}.parquet", kind, dataset_rows(dataset, kind))
            for kind in KINDS
        }


def _write_hf(dataset: Dataset, folder: Path) -> dict[str, int]:
    """One `datasets` folder with tasks, personas and golds as parts; empty ones are left out."""
    import pyarrow as pa

    datasets = require_datasets()
    parts: dict[str, Any] = {}
    for kind in KINDS:
        table = pa.Table.from_pylist(list(dataset_rows(dataset, kind)), schema=arrow_schema(kind))
        if table.num_rows:
            parts[kind] = datasets.Dataset(table)
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return {kind: len(parts.get(kind, ())) for kind in KINDS}


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
