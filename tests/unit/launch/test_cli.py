"""The command line: help, one clear line for a user's mistake (test_imports.py: light imports)."""

from pathlib import Path

import pytest

from stargate.launch.cli import main


def test_a_mistake_is_one_line_and_a_non_zero_exit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "cpu_demo", "rollout.num_dialogs=3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("stargate run: ")
    assert "unknown key rollout.num_dialogs" in captured.err


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fly"])
    assert end.value.code == 2
    assert "run" in capsys.readouterr().err


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


def test_a_current_folder_that_was_deleted_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["run", "cpu_demo"]) == 5
    assert capsys.readouterr().err == (
        "stargate run: the current folder was deleted; change to one that exists\n"
    )
