"""`datasets` folders that somebody else made: what their columns name is neither opened nor
fetched.
"""

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from stargate.data.build.config import HubTasks
from stargate.data.build.sources import read_build_tasks
from stargate.data.cleaning import Cleaner
from stargate.data.dataset import open_dataset
from stargate.data.findings import ImportReport
from stargate.data.importers import TaskSource, import_dataset, parse_splits
from stargate.errors import DataError

datasets = pytest.importorskip("datasets")

TASKS = ["What can I cook?", "What do I wear?"]
_opened: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)  # for the rest of the process; it takes down names only


@pytest.fixture
def fetched() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def save(folder: Path, table: pa.Table, features: dict[str, Any]) -> None:
    """As `save_to_disk` does, which itself would fetch what is decoded."""
    datasets.Dataset(table.replace_schema_metadata()).save_to_disk(str(folder))
    file = folder / "dataset_info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "features": features}))


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video"])
def test_no_path_or_address_in_a_column_is_followed(
    kind: str, tmp_path: Path, fetched: tuple[str, list[str]]
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    places = [{"bytes": None, "path": place} for place in (f"{fetched[0]}/a", str(secret))]
    form = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"prompt": {"dtype": "string", "_type": "Value"}, "seen": {"_type": kind}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema({"prompt": pa.string(), "seen": form}, about)
    table = pa.table({"prompt": TASKS, "seen": places}, schema)
    save(tmp_path / "one", table, features)
    save(tmp_path / "parts/A", table, features)
    (tmp_path / "parts/dataset_dict.json").write_text('{"splits": ["A"]}')
    (tmp_path / "hub/data").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "hub/data/train-00000-of-00001.parquet")
    _opened.clear()
    source = TaskSource(splits=parse_splits("A"))
    for name in ("one", "parts", "hub"):
        report = import_dataset(tmp_path / name, tmp_path / f"{name}-out", tasks=source)
        assert report.counts == {"unknown_column": 1}
        found = open_dataset(tmp_path / f"{name}-out").tasks.values()
        assert [task.text for task in found] == TASKS
    clean = Cleaner(ImportReport(source="build", source_format="hub"))
    hub = HubTasks(name=str(tmp_path / "hub/data"), rows={"A": (0, 2)})
    assert len(read_build_tasks(hub, clean)) == 2
    assert any(name.endswith("state.json") for name in _opened)
    assert str(tmp_path / "secret.png") not in _opened
    assert fetched[1] == []


def test_a_damaged_column_is_one_line(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": TASKS}).save_to_disk(str(tmp_path / "in"))
    [file] = (tmp_path / "in").glob("*.arrow")
    content = file.read_bytes()
    assert content.count(b"cook") == 1
    file.write_bytes(content.replace(b"cook", b"\xff\xff\xff\xff"))
    with pytest.raises(DataError, match=r"in: a damaged Arrow table: ") as error:
        import_dataset(tmp_path / "in", tmp_path / "out", tasks=TaskSource(column="prompt"))
    assert "\n" not in str(error.value)
