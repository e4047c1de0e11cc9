"""What a manifest may name, and the order in which files are copied."""

from pathlib import Path

import pytest

from stargate.errors import DataError
from stargate.records.store import RunStore
from stargate.remote.manifest import (
    FOLDER,
    Content,
    Manifest,
    manifest_name,
    newest_manifest,
    read_manifest,
)
from stargate.remote.scan import is_model_file, is_record, scan
from stargate.remote.storage import Storage
from tests.fakes.remote_run import (
    add_scores,
    new_run,
    start,
)


def test_a_manifest_can_not_name_what_is_not_of_a_run() -> None:
    content = Content("0" * 64, 1)
    for name in (
        *("../x.json", "/etc/x.json", "t0/../../x.json", "t0/scores/../../../x.parquet"),
        *("models/m1/../../x.json", "models/m1/run.py", "models/m1/pytorch_model.bin", ".lock"),
        *("models/m1/.hidden.json", "t0/scores/part-000001.pkl", "logs/driver.log", "landing.json"),
        *("evaluations/../config.yaml", "evaluations/x/../../y.json", "t0\\x.json", "x.json\n"),
    ):
        manifest = Manifest(1, "a" * 32, "host", True, {name: (content,)})
        with pytest.raises(DataError, match="no name of a record"):
            read_manifest(manifest.to_bytes(), "m")
    for name in ("t0/train.json", "t12/scores.parquet", "eval-m3/verdicts/part-000010.parquet",
                 "evaluations/a-b/eval-m0/controls.parquet", "evaluations/a/config.yaml",
                 "environment-2.json", "metrics.jsonl.damaged-1",
                 "t0/scores/part-000001.parquet.damaged-2"):  # fmt: skip
        assert is_record(name), name
    assert is_model_file("models/m1/model-00001-of-00002.safetensors")
    whole = Manifest(7, "a" * 32, "host", False, {"config.yaml": (None, content)})
    assert read_manifest(whole.to_bytes(), "m") == whole
    for cut in (0, 10, len(whole.to_bytes()) - 1):
        with pytest.raises(DataError):
            read_manifest(whole.to_bytes()[:cut], "m")


def test_a_torn_manifest_counts_as_not_written(storage: Storage, store: RunStore) -> None:
    work, said = start(storage, store.root), []
    add_scores(store, 0)
    work.finish()
    manifest = newest_manifest(storage)
    assert manifest is not None
    storage.put_bytes(manifest_name(manifest.number + 1), b'{"sha256": "')
    assert newest_manifest(storage, said.append) == manifest
    assert len(said) == 1 and "the one before it is used" in said[0]
    start(storage, store.root).finish()
    assert len(storage.names(FOLDER)) <= 2


def test_what_was_made_is_copied_after_what_it_was_made_from(tmp_path: Path) -> None:
    store = new_run(tmp_path)
    for version in (1, 2):
        folder = tmp_path / "models" / f"m{version}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    for scope in ("t0", "t1", "eval-m0", "eval-m1"):
        for table in ("dialogues", "scores", "controls"):
            (tmp_path / scope / table).mkdir(parents=True)
            (tmp_path / scope / table / "part-000001.parquet").touch()
            (tmp_path / scope / f"{table}.parquet").touch()
        (tmp_path / scope / "train.json").touch()
    store.write_json("summary.json", {})
    store.append_metrics({})
    names = [file.name for file in scan(tmp_path, models=True)]
    assert names[0] == "config.yaml" and names[-2:] == ["metrics.jsonl", "summary.json"]
    scopes = list(dict.fromkeys("/".join(name.split("/")[:-1]) for name in names[1:-2]))
    assert [s for s in scopes if s.count("/") == (1 if s.startswith("models") else 0)] == [
        *("eval-m0", "t0", "models/m1", "eval-m1", "t1", "models/m2")
    ]
    assert [name for name in names if name.startswith("t1/")] == [
        *("t1/dialogues.parquet", "t1/dialogues/part-000001.parquet"),
        *("t1/scores.parquet", "t1/scores/part-000001.parquet"),
        *("t1/controls.parquet", "t1/controls/part-000001.parquet", "t1/train.json"),
    ]
    assert not any(
        name.startswith("models/") for name in (f.name for f in scan(tmp_path, models=False))
    )
