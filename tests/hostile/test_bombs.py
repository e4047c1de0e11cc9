"""Small inputs that become large: each is refused before it takes time or memory."""

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from stargate.config.files import load_config
from stargate.errors import ConfigError, ModelError
from stargate.oracle.records import AnswerStatus
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
