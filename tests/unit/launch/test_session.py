"""Folders of runs that begin at the same moment."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from stargate.config.run import RunConfig
from stargate.errors import ConfigError
from stargate.launch import session
from stargate.launch.session import fill_run_dir, timed_dir


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tasks of a job array do, with one runs_dir for all."""

    monkeypatch.setattr(session, "datetime", SimpleNamespace(now=lambda zone: _Then()))
    with ThreadPoolExecutor(8) as pool:
        roots = list(pool.map(lambda _: timed_dir(tmp_path / "runs", "run"), range(8)))
    expected = ["run-then", *(f"run-then-{number}" for number in range(2, 9))]
    assert sorted(root.name for root in roots) == sorted(expected)


class _Then:
    def __format__(self, form: str) -> str:
        return "then"


def test_a_folder_that_is_in_use_is_not_filled_again(tmp_path: Path) -> None:
    fill_run_dir(tmp_path / "run", RunConfig())
    with pytest.raises(ConfigError, match=r"runs_dir: can't create .*run: File exists"):
        fill_run_dir(tmp_path / "run", RunConfig())


def test_a_runs_dir_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"runs_dir: can't create .*: Not a directory"):
        timed_dir(tmp_path / "runs", "run")
    assert os.listdir(tmp_path) == ["runs"]
