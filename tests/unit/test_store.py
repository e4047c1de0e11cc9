"""The run directory: durable rows, compaction, and what pandas and DuckDB read."""

import asyncio
import json
from pathlib import Path

import pytest

from stargate.store import (
    RunStore,
    dialogue_from_row,
    dialogue_row,
    example_from_row,
    record_row,
    write_atomically,
)
from stargate.types import Dialogue, DialogueScore, TrainingExample
from tests.unit.fakes import make_pair, make_turn

PAIR = make_pair()
DIALOGUE = Dialogue(
    "t0/t:p/0", "t:p", 0, 2, 9, 1, (make_turn(elicited=(1,)), make_turn("r?", "b")), 0.5
)


def score(number: int) -> dict[str, object]:
    return record_row(DialogueScore(f"d{number}", "p", -1.5, 3))


def test_a_dialogue_survives_the_round_trip(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    asyncio.run(store.append("t0", "dialogues", [dialogue_row(PAIR, DIALOGUE)]))
    [row] = RunStore(tmp_path).read("t0", "dialogues")
    assert dialogue_from_row(row) == DIALOGUE
    assert (row["task"], row["persona_name"], row["elicited"]) == ("t?", "P", [1])


def test_an_example_survives_the_round_trip(tmp_path: Path) -> None:
    example = TrainingExample("t:p", "d", (5, 6, 7), (0, 1, 1), "text")
    store = RunStore(tmp_path)
    asyncio.run(store.append("t0", "examples", [record_row(example)]))
    assert [example_from_row(row) for row in store.read("t0", "examples")] == [example]


def test_rows_are_on_disk_when_append_returns(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = RunStore(tmp_path)
        for number in range(3):
            await store.append("t0", "scores", [score(number)])
            seen = [row["dialogue_id"] for row in RunStore(tmp_path).read("t0", "scores")]
            assert seen == [f"d{i}" for i in range(number + 1)]

    asyncio.run(scenario())


def test_rows_that_arrive_together_share_a_part(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = RunStore(tmp_path)
        await asyncio.gather(*(store.append("t0", "scores", [score(i)]) for i in range(50)))

    asyncio.run(scenario())
    assert len(list((tmp_path / "t0" / "scores").iterdir())) == 1
    assert len(list(RunStore(tmp_path).read("t0", "scores"))) == 50


def test_compact_merges_parts_and_keeps_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = RunStore(tmp_path)
        for number in range(3):
            await store.append("t0", "scores", [score(number)])
        store.compact("t0")
        assert sorted(p.name for p in (tmp_path / "t0").iterdir()) == ["scores.parquet"]
        await store.append("t0", "scores", [score(3)])
        assert [r["dialogue_id"] for r in store.read("t0", "scores")] == ["d0", "d1", "d2", "d3"]
        store.compact("t0")
        assert len(list(store.read("t0", "scores"))) == 4

    asyncio.run(scenario())


def test_a_failed_write_reaches_every_waiter_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = RunStore(tmp_path)
        bad = {**score(0), "num_gold_tokens": "three"}
        results = await asyncio.gather(
            store.append("t0", "scores", [bad]),
            store.append("t0", "scores", [score(1)]),
            return_exceptions=True,
        )
        assert all(isinstance(result, Exception) for result in results)
        await store.append("t0", "scores", [score(2)])
        assert [row["dialogue_id"] for row in store.read("t0", "scores")] == ["d2"]

    asyncio.run(scenario())


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_text("old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, half)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_never_holds_nan(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append_metrics({"loss": float("nan")})
    store.append_metrics({"loss": 1.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {"loss": 1.5}


def test_pandas_and_duckdb_read_the_tables(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    pandas = pytest.importorskip("pandas")
    store = RunStore(tmp_path)
    asyncio.run(store.append("t0", "dialogues", [dialogue_row(PAIR, DIALOGUE)]))
    store.compact("t0")
    file = tmp_path / "t0" / "dialogues.parquet"
    frame = pandas.read_parquet(file)
    assert list(frame["pair_id"]) == ["t:p"]
    assert frame["turns"][0][0]["question"] == "q?"
    query = f"select len(turns), turns[1].answer, elicited from '{file}'"
    assert duckdb.sql(query).fetchall() == [(2, "a", [1])]
