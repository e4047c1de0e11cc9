"""Fuzz of run directories: torn, damaged and odd files are one line, or do not matter."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stargate.config.files import load_config
from stargate.errors import ModelError
from stargate.launch import eval_session
from stargate.launch import setup as actor_group
from tests.fakes.report_run import build_run
from tests.unit.config import test_fuzz_config as fuzz
from tests.unit.config.test_fuzz_config import outcome

FAST = settings(fuzz.FAST, max_examples=fuzz.examples(7))
# What is read as JSON, with a value for every key that a reader takes.
SITTINGS = {
    **{"count": 1, "seconds": 2.0, "peak_gb": 1.0, "peak_measure": "pss"},
    **{"stage_seconds": {"rollout": 1.0}, "generated_tokens": {"t0": 5}, "dialogues": {"t0": 3}},
    **{"dropped": {"x": 1}, "dropped_examples": {"x": ["y"]}, "tracking_lost": {}},
}
TRAIN = {
    **{"losses": [2.0], "grad_norms": [1.0], "learning_rates": [0.1], "validation_loss": None},
    **{"num_examples": 4, "num_tokens": 9, "num_loss_tokens": 5, "seconds": 1.0},
    **{"model_dir": "m1", "num_validation_examples": 0},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with every kind of file in it."""
    folder = tmp_path_factory.mktemp("whole")
    root = build_run(folder, num_dialogues=36)
    for file in root.rglob("config.yaml"):  # without defaults: it is parsed for every command
        config = load_config(file).model_dump(mode="json", exclude_defaults=True)
        config["roleplayer"] = {"grounding": {"type": "facts"}}  # the tag is a default, too
        file.write_text(yaml.safe_dump(config))
    (root / "models").mkdir()
    (root / "logs").mkdir()
    (root / "sittings.json").write_text(json.dumps(SITTINGS))
    (root / "t0/train.json").write_text(json.dumps(TRAIN))
    return root


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read and put in order; then there is no model."""

    def prepare(*args: object, **options: object) -> None:
        raise ModelError("nothing is started here")

    monkeypatch.setattr(actor_group, "prepare", prepare)
    monkeypatch.setattr(eval_session, "prepare", prepare)


def copied(whole: Path, tmp_path: Path) -> Path:
    root = tmp_path / "run"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    return root


def files_of(root: Path) -> list[Path]:
    return sorted(f.relative_to(root) for f in root.rglob("*") if f.is_file())


def read_in_every_way(root: Path) -> None:
    outcome(["report", str(root), "--text"])
    outcome(["eval", str(root)])
    outcome(["resume", str(root)])  # puts it in order
    outcome(["report", str(root), "--text"])


def test_a_whole_run_is_fine(whole: Path, tmp_path: Path) -> None:
    root = copied(whole, tmp_path)
    assert outcome(["report", str(root), "--text"]) == 0
    assert outcome(["resume", str(root)]) == 0  # it has finished


@FAST
@given(data=st.data())
def test_torn_and_damaged_files(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    root = copied(whole, tmp_path)
    names = data.draw(st.lists(st.sampled_from(files_of(whole)), min_size=1, max_size=3))
    for name in names:
        content = bytearray((whole / name).read_bytes())
        harm = data.draw(st.sampled_from(["cut", "flip", "other", "empty", "gone"]))
        if harm == "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        elif harm == "flip":
            for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
                content[place] ^= data.draw(st.integers(1, 255))
        elif harm == "other":
            content = bytearray(data.draw(st.binary(max_size=30)))
        elif harm == "empty":
            content.clear()
        if harm == "gone":
            (root / name).unlink(missing_ok=True)
        else:
            (root / name).write_bytes(content)
    read_in_every_way(root)


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON values; of a list the first element only."""
    yield place
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*place, key))
    elif isinstance(tree, list) and tree:
        yield from places(tree[0], (*place, 0))


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    tree = copy.deepcopy(tree)
    node = tree
    for key in place[:-1]:
        node = node[key]
    if value == "gone":
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return tree


ODD_TEXTS = ("text", "gone", "\x1b[2J\r", "m1")
ODD = st.sampled_from(
    [None, True, -1, 10**400, 1e308, *ODD_TEXTS, [], [None], {}, {"a": {}}, ["x"]]
)
JSON_FILES = ("summary.json", "eval.json", "environment.json", "sittings.json", "t0/train.json")


@FAST
@given(data=st.data(), name=st.sampled_from((*JSON_FILES, "evaluations/strict/eval.json")))
def test_json_with_a_value_that_is_none_of_ours(
    whole: Path, tmp_path: Path, data: st.DataObject, name: str
) -> None:
    root = copied(whole, tmp_path)
    tree = json.loads((whole / name).read_text())
    place = data.draw(st.sampled_from(list(places(tree))))
    (root / name).write_text(json.dumps(changed(tree, place, data.draw(ODD))))
    read_in_every_way(root)


@FAST
@given(data=st.data())
def test_metrics_with_a_value_that_is_none_of_ours(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    root = copied(whole, tmp_path)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.sampled_from(list(places(lines[number]))))
    lines[number] = changed(lines[number], place, data.draw(ODD))
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "summary.json").unlink()  # else it has finished, and a resume reads no further
    read_in_every_way(root)


@FAST
@given(
    content=st.binary(max_size=60) | fuzz.TREES.map(lambda t: json.dumps(t, default=str).encode())
)
@example(content=b"{}")
@example(content=b'{"conditions": {"own_response": 7}}')
def test_any_bytes_as_an_ablation(tmp_path: Path, whole: Path, content: bytes) -> None:
    root = tmp_path / "ablation"
    root.mkdir(exist_ok=True)
    (root / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    (root / "ablation.json").write_bytes(content)
    assert outcome(["ablate", "--resume", str(root)]) != 0
    assert outcome(["resume", str(root)]) != 0
    assert outcome(["report", str(root), "--text"]) in (0, 3)


@pytest.mark.parametrize("name", ["x" * 5000, "", ".", "/dev/null", "/proc/self"])
@pytest.mark.parametrize("command", ["report", "resume", "eval"])
def test_any_name_of_a_run(
    tmp_path: Path, command: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome([command, name]) != 0
