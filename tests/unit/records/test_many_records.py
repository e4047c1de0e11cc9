"""What keeps the driver small when an iteration has 125,000 dialogues."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stargate.records import parquet as parquet_module
from stargate.records import store as store_module
from stargate.records.history import read_finished
from stargate.records.schemas import Row, dialogue_row, record_row
from stargate.records.store import RunStore, table_files
from stargate.types import Dialogue, DialogueScore
from tests.fakes.clock import run_at_once
from tests.fakes.scripted import make_pair, make_turn

PAIR = make_pair()


def dialogue(index: int) -> Dialogue:
    turns = (make_turn(question=f"q{index}?", elicited=(1,)), make_turn())
    return Dialogue(f"t0/t:p/{index}", "t:p", index, 2, index, 0, turns, seconds=0.5)


def score(index: int) -> DialogueScore:
    return DialogueScore(f"t0/t:p/{index}", "t:p", -1.5, 4)


async def test_a_merged_table_has_few_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_GROUP_ROWS", 8)
    store = RunStore(tmp_path)
    for index in range(20):
        await store.append("t0", "scores", [record_row(score(index))])
    assert len(table_files(tmp_path / "t0" / "scores")) == 20
    store.compact("t0")
    [file] = table_files(tmp_path / "t0" / "scores")
    footer = pq.read_metadata(file)
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [8, 8, 4]
    assert [row["dialogue_id"] for row in store.read("t0", "scores")] == [
        f"t0/t:p/{index}" for index in range(20)
    ]


def test_a_table_is_read_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "_READ_ROWS", 3)
    store = RunStore(tmp_path)
    asyncio.run(store.append("t0", "scores", [record_row(score(index)) for index in range(8)]))
    rows = store.read("t0", "scores")
    assert [row["dialogue_id"][-1] for row in rows] == list("01234567")


def test_finished_dialogues_are_packed_and_come_back_as_they_were(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    rows = [dialogue_row(PAIR, dialogue(index)) for index in range(5)]
    asyncio.run(store.append("t0", "dialogues", rows))
    found = read_finished(store, "t0").dialogues
    assert len(found) == 5
    assert list(found) == [f"t0/t:p/{index}" for index in range(5)]
    assert found["t0/t:p/3"] == dialogue(3)
    assert found.get("t0/t:p/9") is None


def test_a_steady_stream_is_written_in_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every append is durable when it returns, and rows that come meanwhile share a file."""
    monkeypatch.setattr(store_module, "_GATHER_SECONDS", 0.02)

    async def at_once(write: Callable[[list[Row]], None], rows: list[Row]) -> None:
        write(rows)  # in no thread: `run_at_once` would not wait for one

    monkeypatch.setattr(asyncio, "to_thread", at_once)

    async def one(index: int) -> None:
        await store.append("t0", "scores", [record_row(score(index))])
        assert table_files(tmp_path / "t0" / "scores")

    async def stream() -> None:
        tasks = []
        for index in range(300):
            tasks.append(asyncio.create_task(one(index)))
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    store = RunStore(tmp_path)
    run_at_once(stream())
    assert store.num_rows("t0", "scores") == 300
    assert len(table_files(tmp_path / "t0" / "scores")) <= 20
