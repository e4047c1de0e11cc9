"""Small inputs that become large: each is refused before it takes time or memory."""

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stargate.config.files import load_config
from stargate.errors import ConfigError, DataError, ModelError
from stargate.oracle.records import AnswerStatus
from stargate.records import parquet
from stargate.records.model_folder import read_header
from tests.fakes.misbehaving_server import MisbehavingServer, Raw, completion
from tests.fakes.oracle_cases import ask, complete_all, config


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    names = "abcdefghijkl"
    lines = ["a: &a [0, 0, 0, 0, 0, 0, 0, 0]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]" for old, new in pairwise(names)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    assert file.stat().st_size < 700
    with pytest.raises(ConfigError, match=r"bomb.yaml: not valid YAML: its aliases make .* values"):
        load_config(file)
    with pytest.raises(ConfigError, match="the value is not valid YAML"):
        load_config("cpu_demo", ["name=&a [*a]"])


def test_aliases_that_repeat_a_little_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rollout: {turns: &k [1, 2]}\nevaluation: {turns: [3]}\nname: x\n")
    assert load_config(file).rollout.turns == (1, 2)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((2 << 30).to_bytes(8, "little"))
        stream.truncate((2 << 30) + 100)  # a hole: no disk is used
    with pytest.raises(ModelError, match=r"its header would have 2,147,483,648 bytes; not read"):
        read_header(file)


def test_a_text_that_is_held_once_does_not_multiply(tmp_path: Path) -> None:
    """500 bytes that would be 5.6 GB."""
    file = tmp_path / "tasks.parquet"
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 5600, pa.int32()), ["x" * 1_000_000])
    pq.write_table(pa.table({"text": once}), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 2000
    before = pa.total_allocated_bytes()
    with pytest.raises(
        DataError, match=r"tasks.parquet: its rows would take more than 268,435,456"
    ):
        next(parquet.read_batches(file))
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_nor_does_one_within_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MAX_UNFOLDED", 1 << 20)
    file = tmp_path / "golds.parquet"
    pq.write_table(pa.table({"turns": [[{"text": "z" * 10_000}] * 1000]}), file)
    assert file.stat().st_size < 5000
    with pytest.raises(DataError, match=r"would take more than 1,048,576 bytes"):
        list(parquet.read_rows(file))


def test_what_a_footer_says_is_believed_if_it_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_UNFOLDED", 1 << 20)
    file = tmp_path / "tasks.parquet"
    for table in ({"index": pa.array([0] * 200_000)}, {"text": ["y" * (2 << 20)]}):
        pq.write_table(pa.table(table), file, compression="zstd")
        with pytest.raises(DataError, match=r"would take more than 1,048,576 bytes"):
            list(parquet.read_rows(file))
    text = "".join(chr(33 + (i * i + i // 7) % 90) for i in range(200_000))  # a large file may be
    pq.write_table(pa.table({"text": [f"{i} {text}" for i in range(20)]}), file)
    assert len(list(parquet.read_rows(file))) == 20


PACKED = gzip.compress(json.dumps({"choices": ["x" * 5_000_000]}).encode())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Raw(200, PACKED, headers=(("Content-Encoding", "gzip"),)), r"compressed \(gzip\)"),
        (Raw(500, PACKED, headers=(("Content-Encoding", "gzip"),)), r"compressed \(gzip\)"),
        (Raw(200, b" " * (17 << 20)), "more than 16,777,216 bytes"),
    ],
)
def test_an_answer_is_no_bomb(tmp_path: Path, answer: Raw, problem: str) -> None:
    with MisbehavingServer(lambda seen: answer) as server:
        [result] = complete_all(config(server.url), tmp_path, [ask("a")])
    assert result.status is AnswerStatus.FAILED
    assert result.detail is not None
    assert re.search(problem, result.detail)


def test_a_plain_answer_passes(tmp_path: Path) -> None:
    plain = Raw(200, completion("yes"), headers=(("Content-Encoding", "identity"),))
    with MisbehavingServer(lambda seen: plain) as server:
        [result] = complete_all(config(server.url), tmp_path, [ask("a")])
    assert result.text == "yes"
