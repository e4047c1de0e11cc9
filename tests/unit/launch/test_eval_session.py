"""What `stargate eval` measures, and where that belongs."""

from pathlib import Path

import pytest

from stargate.config.files import dump_config, load_config
from stargate.config.run import RunConfig
from stargate.errors import ConfigError, DataError
from stargate.evaluation.evaluator import checkpoint_dirs
from stargate.launch.eval_session import (
    chosen_checkpoints,
    evaluation_root,
)
from stargate.records.store import load_run_config

DIRS = {0: Path("base"), 1: Path("m1"), 3: Path("m3")}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(dump_config(RunConfig()), encoding="utf-8")
    return tmp_path


def root(run_dir: Path, *overrides: str, name: str | None = None) -> Path:
    config = load_config(run_dir / "config.yaml", overrides)
    return evaluation_root(run_dir, name, load_run_config(run_dir), config)


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.num_dialogues=8",
        "evaluation.judge={max_pairs: 3}",
        "scorer.num_scorers=2",
        "roleplayer.engine.max_num_seqs=8",
    ],
)
def test_more_of_the_same_belongs_to_the_run(run_dir: Path, override: str) -> None:
    assert root(run_dir, override) == run_dir


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=3", "seed"),
        ("data.test_split=other", "data.test_split"),
        ("evaluation.turns=[2]", "evaluation.turns"),
        ("evaluation.response_instruction=false", "evaluation.response_instruction"),
        ("roleplayer.prompts=small", "roleplayer.prompts"),
        ("questioner.sampling.temperature=0.1", "questioner.sampling.temperature"),
    ],
)
def test_what_is_measured_otherwise_needs_a_name(run_dir: Path, override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key} changes what is measured"):
        root(run_dir, override)
    assert root(run_dir, override, name="mine") == run_dir / "evaluations" / "mine"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_name_can_not_leave_the_run(run_dir: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--name must be"):
        root(run_dir, name=name)


def test_m0_is_always_among_the_checkpoints() -> None:
    assert chosen_checkpoints(None, DIRS) == DIRS
    assert chosen_checkpoints("m3", DIRS) == {0: Path("base"), 3: Path("m3")}
    assert list(chosen_checkpoints("3, m1", DIRS)) == [0, 1, 3]
    for text in ("m2", "last", "", "m0,mm"):
        with pytest.raises(ConfigError, match="is not one of m0, m1, m3"):
            chosen_checkpoints(text, DIRS)


def test_checkpoints_are_the_runs_model_folders(tmp_path: Path) -> None:
    for name in ("m1", "m10", "m2", "mx", ".m3.tmp"):
        (tmp_path / "models" / name).mkdir(parents=True)
    assert list(checkpoint_dirs(tmp_path, Path("base"))) == [0, 1, 2, 10]
    assert checkpoint_dirs(tmp_path / "nothing", Path("base")) == {0: Path("base")}


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run directory: it has no config\.yaml"):
        load_run_config(tmp_path)
