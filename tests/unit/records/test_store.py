"""The run directory: durable rows, compaction, and what pandas and DuckDB read."""

import asyncio
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stargate.errors import DataError
from stargate.records.files import hold, write_atomically
from stargate.records.repair import Repairs, discovery, repair, set_aside_files
from stargate.records.schemas import (
    SCHEMAS,
    dialogue_from_row,
    dialogue_row,
    record_row,
)
from stargate.records.store import RunStore, table_files, versions_of
from stargate.types import Dialogue, DialogueScore, TrainingExample
from tests.fakes.scripted import make_pair, make_turn

PAIR = make_pair()
DIALOGUE = Dialogue(
    "t0/t:p/0", "t:p", 0, 2, 9, 1, (make_turn(elicited=(1,)), make_turn("r?", "b")), 0.5
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


def score_ids(store: RunStore) -> list[str]:
    return [row["dialogue_id"] for row in store.read("t0", "scores")]


def score(number: int) -> dict[str, object]:
    return record_row(DialogueScore(f"d{number}", "p", -1.5, 3))


def test_a_dialogue_survives_the_round_trip(tmp_path: Path, store: RunStore) -> None:
    asyncio.run(store.append("t0", "dialogues", [dialogue_row(PAIR, DIALOGUE)]))
    [row] = RunStore(tmp_path).read("t0", "dialogues")
    assert dialogue_from_row(row) == DIALOGUE
    assert (row["task"], row["persona_name"], row["elicited"]) == ("t?", "P", [1])


def test_an_example_survives_the_round_trip(store: RunStore) -> None:
    example = TrainingExample("t:p", "d", (5, 6, 7), (0, 1, 1), "text")
    asyncio.run(store.append("t0", "examples", [record_row(example)]))
    assert list(store.records("t0", "examples", TrainingExample)) == [example]


async def test_a_row_that_is_there_twice_is_refused(store: RunStore) -> None:
    await store.append("t0", "scores", [score(0), score(1)])
    await store.append("t0", "scores", [score(1)])
    with pytest.raises(DataError, match=r"part-000001.parquet: d1 is there twice$"):
        list(store.read("t0", "scores"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_number_that_is_not_finite_is_refused_however_deep_it_stands(
    store: RunStore, value: float
) -> None:
    await store.append("t0", "scores", [score(0), score(1) | {"gold_logprob": value}])
    turns = (replace(DIALOGUE.turns[0], question_logprobs=(-0.5, value)),)
    await store.append("t0", "dialogues", [dialogue_row(PAIR, replace(DIALOGUE, turns=turns))])
    for table, column in (("scores", "gold_logprob"), ("dialogues", "turns")):
        with pytest.raises(DataError, match=rf"{column} holds a number that is not finite$"):
            list(store.read("t0", table))


async def test_rows_are_on_disk_when_append_returns(tmp_path: Path, store: RunStore) -> None:
    for number in range(3):
        await store.append("t0", "scores", [score(number)])
        seen = score_ids(RunStore(tmp_path))
        assert seen == [f"d{i}" for i in range(number + 1)]


async def test_rows_that_arrive_together_share_a_part(tmp_path: Path, store: RunStore) -> None:
    await asyncio.gather(*(store.append("t0", "scores", [score(i)]) for i in range(50)))
    assert len(list((tmp_path / "t0" / "scores").iterdir())) == 1
    assert len(list(RunStore(tmp_path).read("t0", "scores"))) == 50


async def test_compact_merges_parts_and_keeps_order(tmp_path: Path, store: RunStore) -> None:
    for number in range(3):
        await store.append("t0", "scores", [score(number)])
    store.compact("t0")
    assert sorted(p.name for p in (tmp_path / "t0").iterdir()) == ["scores.parquet"]
    await store.append("t0", "scores", [score(3)])
    assert score_ids(store) == ["d0", "d1", "d2", "d3"]
    store.compact("t0")
    assert len(list(store.read("t0", "scores"))) == 4


async def test_a_failed_write_reaches_every_waiter_and_leaves_nothing(store: RunStore) -> None:
    bad = {**score(0), "num_gold_tokens": "three"}
    results = await asyncio.gather(
        store.append("t0", "scores", [bad]),
        store.append("t0", "scores", [score(1)]),
        return_exceptions=True,
    )
    assert all(isinstance(result, Exception) for result in results)
    await store.append("t0", "scores", [score(2)])
    assert score_ids(store) == ["d2"]


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


def test_json_never_holds_nan(tmp_path: Path, store: RunStore) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append_metrics({"loss": float("nan")})
    store.append_metrics({"loss": 1.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {"loss": 1.5}


def test_pandas_and_duckdb_read_the_tables(tmp_path: Path, store: RunStore) -> None:
    duckdb = pytest.importorskip("duckdb")
    pandas = pytest.importorskip("pandas")
    asyncio.run(store.append("t0", "dialogues", [dialogue_row(PAIR, DIALOGUE)]))
    store.compact("t0")
    file = tmp_path / "t0" / "dialogues.parquet"
    frame = pandas.read_parquet(file)
    assert list(frame["pair_id"]) == ["t:p"]
    assert frame["turns"][0][0]["question"] == "q?"
    query = f"select len(turns), turns[1].answer, elicited from '{file}'"
    assert duckdb.sql(query).fetchall() == [(2, "a", [1])]


async def test_a_part_that_a_killed_compact_left_is_not_read_twice(
    tmp_path: Path, store: RunStore
) -> None:
    for number in range(2):
        await store.append("t0", "scores", [score(number)])
    part = tmp_path / "t0" / "scores" / "part-000001.parquet"
    content = part.read_bytes()
    store.compact("t0")
    part.parent.mkdir()
    part.write_bytes(content)
    again = RunStore(tmp_path)
    assert score_ids(again) == ["d0", "d1"]
    await again.append("t0", "scores", [score(2)])
    assert score_ids(again) == ["d0", "d1", "d2"]
    assert repair(tmp_path, discovery(tmp_path)).num_merged_parts == 1
    assert score_ids(again) == ["d0", "d1", "d2"]


def test_a_damaged_page_is_one_clear_error_on_reading(tmp_path: Path, store: RunStore) -> None:
    asyncio.run(store.append("t0", "scores", [score(i) for i in range(2000)]))
    [part] = table_files(tmp_path / "t0" / "scores")
    content = bytearray(part.read_bytes())
    content[len(content) // 8] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match=r"part-000000\.parquet: can't be read"):
        list(store.read("t0", "scores"))
    with pytest.raises(DataError, match="can't be read"):
        store.compact("t0")  # damage must not get a new, right checksum
    assert part.exists() and not (tmp_path / "t0" / "scores.parquet").exists()


def test_tables_of_earlier_versions_are_whole_if_they_can_be_read(
    tmp_path: Path, store: RunStore
) -> None:
    """They have no checksums, and may lack a column that was added since."""
    (tmp_path / "t0").mkdir()
    file = tmp_path / "t0" / "scores.parquet"
    old = pa.schema([f for f in SCHEMAS["scores"] if "other" not in f.name])
    row = {"dialogue_id": "d0", "pair_id": "p", "gold_logprob": -1.0, "num_gold_tokens": 2}
    pq.write_table(pa.Table.from_pylist([row], schema=old), file)
    assert discovery(tmp_path) == []
    asyncio.run(store.append("t0", "scores", [score(1)]))
    store.compact("t0")
    rows = list(store.read("t0", "scores"))
    assert [(r["dialogue_id"], r["other_gold_logprob"]) for r in rows] == [
        ("d0", None),
        ("d1", None),
    ]
    file.write_bytes(file.read_bytes()[:-20])
    assert [damage.file for damage in discovery(tmp_path)] == [file]


def test_rows_made_from_lost_ones_go_too(tmp_path: Path, store: RunStore) -> None:
    async def fill(store: RunStore) -> None:
        for pair in ("p", "q"):
            dialogue = {"id": f"t0/{pair}/0", "pair_id": pair, "index": 0, "turns": []}
            await store.append("t0", "dialogues", [dialogue])
            ids = {"dialogue_id": dialogue["id"], "pair_id": pair}
            await store.append("t0", "scores", [{**ids, "gold_logprob": -1.0}])
            await store.append("t0", "selections", [{**ids, "candidates": [dialogue["id"]]}])
            await store.append("t0", "examples", [ids])

    asyncio.run(fill(store))
    part = table_files(tmp_path / "t0" / "dialogues")[0]
    part.write_bytes(b"PAR1")
    repairs = repair(tmp_path, discovery(tmp_path))
    assert [place.name for _, place in repairs.set_aside] == ["part-000000.parquet.damaged-1"]
    assert repairs.num_outdated_rows == 3
    for table in ("dialogues", "scores", "selections", "examples"):
        assert [row["pair_id"] for row in store.read("t0", table)] == ["q"]
    assert set_aside_files(tmp_path) == ["t0/dialogues/part-000000.parquet.damaged-1"]
    assert repair(tmp_path, discovery(tmp_path)) == Repairs()


def test_what_an_evaluation_made_from_lost_dialogues_goes_too(
    tmp_path: Path, store: RunStore
) -> None:
    made = ("question_fits", "controls", "responses")

    async def fill() -> None:
        for pair in ("p", "q"):
            dialogue = {"id": f"d/{pair}", "pair_id": pair, "index": 0, "turns": []}
            await store.append("eval-m1", "dialogues", [dialogue])
            for table in made:
                row = {"dialogue_id": dialogue["id"], "pair_id": pair}
                await store.append("eval-m1", table, [row])

    asyncio.run(fill())
    table_files(tmp_path / "eval-m1" / "dialogues")[0].write_bytes(b"PAR1")
    assert repair(tmp_path, discovery(tmp_path)).num_outdated_rows == len(made)
    for table in made:
        assert [row["pair_id"] for row in store.read("eval-m1", table)] == ["q"]


def test_metrics_lose_torn_and_damaged_lines_only(tmp_path: Path, store: RunStore) -> None:
    file = tmp_path / "metrics.jsonl"
    store.append_metrics({"event": "evaluation", "version": 0})
    with file.open("a") as stream:
        stream.write('{"event": "itera')
    repairs = repair(tmp_path, discovery(tmp_path))
    assert (repairs.num_torn_lines, repairs.set_aside) == (1, ())
    store.append_metrics({"event": "evaluation", "version": 1})
    file.write_text(file.read_text().replace('"version": 0', '"version": 0]'))
    repairs = repair(tmp_path, discovery(tmp_path))
    assert [place.name for _, place in repairs.set_aside] == ["metrics.jsonl.damaged-1"]
    assert [event["version"] for event in store.read_metrics()] == [1]


def test_temporary_files_of_living_processes_stay(tmp_path: Path) -> None:
    (tmp_path / ".summary.json.1.tmp").write_text("init lives")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / f".summary.json.{child.pid}.tmp").write_text("half a summ")
    assert repair(tmp_path, []).num_temporaries == 1
    assert [file.name for file in tmp_path.iterdir()] == [".summary.json.1.tmp"]


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """The lock dies with its process (kill -9), and programs started meanwhile don't keep it."""
    code = (
        "import subprocess, sys; from pathlib import Path\n"
        "from stargate.records.files import hold\n"
        "with hold(Path(sys.argv[1])):\n"
        "    code = 'import sys; sys.stdin.read()'\n"
        "    subprocess.Popen([sys.executable, '-c', code], close_fds=False)\n"
        "    print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    message = rf"another process works on it right now \(pid {holder.pid} on "
    with pytest.raises(DataError, match=message), hold(tmp_path):
        pass
    holder.kill()
    assert holder.wait() == -9
    try:
        with hold(tmp_path):  # its child still lives
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        holder.stdin.close()  # which ends the child
        holder.stdout.close()


def test_versions_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("eval-m10", "eval-m2", "eval-m0", "eval-m1x", "eval-m01", "t0"):
        (tmp_path / name).mkdir()
    (tmp_path / "eval-m3").write_text("not a folder")
    assert versions_of(tmp_path, "eval-m") == [0, 2, 10]
