"""A data set as the hub has it, and files that begin with a byte order mark."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stargate.config.run import DataConfig
from stargate.data.build.config import FileTasks
from stargate.data.build.sources import read_build_tasks
from stargate.data.cleaning import Cleaner
from stargate.data.dataset import load_dataset, open_dataset, read_dataset
from stargate.data.findings import ImportReport
from stargate.data.importers import TaskSource, detect_format, import_dataset, parse_splits
from stargate.errors import DataError

PERSONA = {"id": "p", "name": "Ada", "text": "I mend clocks.", "split": "A"}
GOLD = {"task_id": "A-task-1", "persona_id": "p", "text": "Mend it."}


def shard(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)
    return folder


def texts(folder: Path) -> list[tuple[str, str]]:
    return [(task.text, task.split) for task in open_dataset(folder).tasks.values()]


def test_a_snapshot_is_read_file_after_file(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    shard(snapshot / "data", "train-00001-of-00002.parquet", {"prompt": "Go?"})
    shard(snapshot / "data", "train-00000-of-00002.parquet", {"prompt": "Eat?"}, {"prompt": "Do?"})
    (snapshot / "README.md").write_text("---\ndata_files: https://elsewhere/x.parquet\n---\n")
    assert detect_format(snapshot) == "hf"
    splits = TaskSource(splits=parse_splits("A=2,B"))
    import_dataset(snapshot, tmp_path / "out", tasks=splits)
    assert texts(tmp_path / "out") == [("Eat?", "A"), ("Do?", "A"), ("Go?", "B")]
    tasks = read_build_tasks(
        FileTasks(type="file", path=snapshot, rows={"A": (0, 1), "B": (2, 3)}),
        Cleaner(ImportReport(source="build", source_format="file"), "test"),
    )
    assert [(task.text, task.split) for task in tasks.values()] == [("Eat?", "A"), ("Go?", "B")]


def test_the_parts_of_a_snapshot_are_splits(tmp_path: Path) -> None:
    shard(tmp_path / "in", "test-00000-of-00001.parquet", {"prompt": "Go?"})
    shard(tmp_path / "in", "A-00000-of-00001-a09b74b3ef9c3b56.parquet", {"prompt": "Eat?"})
    import_dataset(tmp_path / "in", tmp_path / "out")
    assert texts(tmp_path / "out") == [("Eat?", "A"), ("Go?", "test")]


@pytest.mark.parametrize("as_parts", [True, False])
def test_a_whole_data_set_comes_back_from_the_hub(tmp_path: Path, as_parts: bool) -> None:
    rows = {
        "tasks": {"id": "A-task-1", "text": "Mend?", "split": "A"},
        "personas": PERSONA,
        "golds": GOLD,
    }
    for kind, row in rows.items():
        folder, part = ("data", kind) if as_parts else (kind, "train")
        shard(tmp_path / "in" / folder, f"{part}-00000-of-00001.parquet", row)
    import_dataset(tmp_path / "in", tmp_path / "out")
    [pair] = read_dataset(tmp_path / "out").pairs("A")
    assert (pair.task.text, pair.persona.name, pair.gold) == ("Mend?", "Ada", "Mend it.")


def test_half_a_snapshot_and_two_in_one_are_refused(tmp_path: Path) -> None:
    half = shard(tmp_path / "half" / "data", "train-00000-of-00002.parquet", {"prompt": "x"})
    with pytest.raises(DataError, match="file 00001 of 2 of 'train' is missing"):
        import_dataset(half.parent, tmp_path / "out")
    for name in ("easy", "hard"):
        shard(tmp_path / "two" / name, "train-00000-of-00001.parquet", {"prompt": name})
    with pytest.raises(DataError, match=r"several data sets \(easy, hard\): name the folder"):
        import_dataset(tmp_path / "two", tmp_path / "out")
    splits = TaskSource(splits=parse_splits("A"))
    import_dataset(tmp_path / "two" / "hard", tmp_path / "out", tasks=splits)
    assert texts(tmp_path / "out") == [("hard", "A")]


def test_files_with_a_byte_order_mark_are_data_and_imports(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    kinds = {
        "tasks": [{"id": f"{s}-task-1", "text": f"Mend {s}?", "split": s} for s in ("A", "test")],
        "personas": [PERSONA | {"id": s, "text": f"I mend {s}.", "split": s} for s in ("A", "B")],
        "golds": [GOLD | {"persona_id": "A"}],
    }
    for kind, rows in kinds.items():
        lines = "".join(json.dumps(row) + "\r\n" for row in rows)
        (folder / f"{kind}.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    read = load_dataset(DataConfig(source=str(folder)))
    assert [(pair.id, pair.gold) for pair in read.pairs("A")] == [("A-task-1:A", "Mend it.")]
    import_dataset(folder, tmp_path / "out")
    assert read_dataset(tmp_path / "out").tasks == read.tasks
