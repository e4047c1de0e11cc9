"""Fuzz of data: whatever a data file holds, the user sees one line or it is read and reported."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stargate.config.run import DataConfig
from stargate.data.dataset import load_dataset
from stargate.errors import DataError
from tests.fakes.data_folder import write_folder
from tests.unit.config import test_fuzz_config as fuzz
from tests.unit.config.test_fuzz_config import outcome

FAST = settings(fuzz.FAST, max_examples=fuzz.examples(8))
KINDS = ("tasks", "personas", "golds")
FIELDS = {
    "tasks": ("id", "text", "split", "needs_question"),
    "personas": ("id", "name", "text", "split", "facts", "fact_origins"),
    "golds": ("task_id", "persona_id", "text", "facts_used"),
}
GOOD: dict[str, dict[str, Any]] = {
    "tasks": {"id": "t", "text": "Can you plan a trip for me?", "split": "A"},
    "personas": {
        **{"id": "p", "name": "Ana", "text": "I am Ana.", "split": "A"},
        "facts": ["I am Ana."],
    },
    "golds": {"task_id": "t", "persona_id": "p", "text": "Go to Rome, Ana.", "facts_used": [0]},
}
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=2**63),
        st.floats(),
        st.text(max_size=10),
        st.sampled_from(["t", "p", "A", "../x", "sentence:0-9", "\ud800", "\x1b[2J\r", "x" * 5000]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def rows(draw: st.DrawFn, kind: str) -> Any:
    """A good row with some of its values replaced, or no row at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    changed = draw(st.dictionaries(st.sampled_from(FIELDS[kind]), VALUES, max_size=2))
    return {**GOOD[kind], **changed}


def lines(found: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode("utf-8", "surrogatepass")


def write_good(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return write_folder(folder, **{kind: [GOOD[kind]] for kind in KINDS})


def read_in_every_way(source: Path, out: Path, *options: str) -> None:
    """A dataset folder, or a file for the import, through all commands that read one."""
    if source.is_dir():
        outcome(["data", "show", str(source)])
        outcome(["data", "check", str(source)])
        with contextlib.suppress(DataError):  # as a run reads it
            load_dataset(DataConfig(source=str(source), train_splits=("A",))).pairs("A")
        for target in ("jsonl", "sft"):
            outcome(["data", "export", str(source), str(out), "--format", target])
            shutil.rmtree(out, ignore_errors=True)
    if outcome(["data", "import", str(source), str(out), *options]) == 0:
        assert outcome(["data", "check", str(out)]) == 0  # what we wrote we can read
    else:
        assert not out.exists()
    shutil.rmtree(out, ignore_errors=True)
    assert not list(out.parent.glob(f".{out.name}*"))


@FAST
@given(kind=st.sampled_from(KINDS), content=st.binary(max_size=120))
@example(kind="tasks", content=b"[" * 20_000)
@example(kind="golds", content=b'{"task_id": ' + b"9" * 5000 + b"}")
@example(kind="personas", content=b"\xff\xfe")
@example(kind="tasks", content=b"")
@example(kind="tasks", content=b"null\n")
@example(kind="tasks", content=b'{"id": "t", "text": "\\ud800?", "split": "A"}')
def test_any_bytes_as_a_jsonl_file(tmp_path: Path, kind: str, content: bytes) -> None:
    folder = write_good(tmp_path / "data")
    (folder / f"{kind}.jsonl").write_bytes(content)
    read_in_every_way(folder, tmp_path / "out")


@FAST
@given(data=st.data())
def test_any_rows_as_a_jsonl_file(tmp_path: Path, data: st.DataObject) -> None:
    folder = write_good(tmp_path / "data")
    for kind in KINDS:
        found = data.draw(st.lists(rows(kind), max_size=3))
        (folder / f"{kind}.jsonl").write_bytes(lines(found))
    read_in_every_way(folder, tmp_path / "out")


@FAST
@given(data=st.data())
def test_any_columns_and_any_damage_in_parquet(tmp_path: Path, data: st.DataObject) -> None:
    folder = write_good(tmp_path / "data")
    for kind in KINDS:
        (folder / f"{kind}.jsonl").unlink()
        table = pa.Table.from_pylist([GOOD[kind]] * data.draw(st.integers(0, 2)))
        columns = data.draw(st.lists(st.sampled_from([*FIELDS[kind], "other"]), max_size=2))
        for name in columns:
            values = data.draw(
                st.sampled_from(
                    [b"\xff\xfe", 2**62, 1.5, [["deep"]], {"a": None}, None, "text", True]
                )
            )
            column = pa.array([values] * table.num_rows)
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, column)
        file = folder / f"{kind}.parquet"
        pq.write_table(table, file)
        content = bytearray(file.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
            content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    read_in_every_way(folder, tmp_path / "out")


@FAST
@given(
    content=st.text(max_size=60) | st.binary(max_size=60),
    ending=st.sampled_from(["csv", "jsonl", "parquet"]),
)
@example(content='text,split\n"a', ending="csv")
@example(content='"text', ending="csv")
@example(content="text,text\na,b\n", ending="csv")
@example(content="a\x00b\n", ending="csv")
def test_any_bytes_as_a_file_of_tasks(tmp_path: Path, content: str | bytes, ending: str) -> None:
    file = tmp_path / f"tasks.{ending}"
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    file.write_bytes(raw)
    read_in_every_way(file, tmp_path / "out", "--splits", "A")


@FAST
@given(data=st.data())
def test_any_json_in_the_authors_layout(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "official"
    shutil.rmtree(source, ignore_errors=True)
    good = {
        "prompts/A.json": ["Can you plan a trip for me?"],
        "personas/A.json": ["I'm Ana, a baker. I rise at five."],
        "personas/A_NAMES.json": ["Ana"],
        "gold-responses/A.json": {"prompt-0 persona-0": ["Go to Rome, Ana."]},
    }
    bad = data.draw(st.lists(st.sampled_from(sorted(good)), max_size=2))
    for name, value in good.items():
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(value).encode()
        if name in bad:
            content = data.draw(
                st.binary(max_size=20) | VALUES.map(lambda v: json.dumps(v).encode())
            )
        file.write_bytes(content)
    read_in_every_way(source, tmp_path / "out", "--format", "star-gate")


@pytest.mark.parametrize("name", ["x" * 5000, "", ".", "/dev/null", "/proc/self/mem"])
def test_any_name_of_a_dataset(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["data", "show", name],
        ["data", "check", name],
        ["data", "export", name, "out", "--format", "jsonl"],
        ["data", "export", "starter", name, "--format", "jsonl"],
        ["data", "import", name, "out"],
        ["data", "check", "starter", "--json", name],
    ):
        outcome(argv)
