"""Run directories that somebody else made: one line, an exit code, and nothing outside is touched.

Every command that opens a run directory, against links, pipes and records beyond reason.
"""

import os
import shutil
import socket
from pathlib import Path

import pytest

from stargate.launch.cli import main
from tests.fakes.report_run import build_run

COMMANDS = ("resume", "eval", "report")
# Names of a run, and what stands under them.
NAMES = (".lock", "config.yaml", "metrics.jsonl", "logs", "t0", "t0/scores.parquet", "models")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def run_dir(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def refused(command: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says, having failed."""
    assert main([command, str(run_dir)]) not in (0, None)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stargate {command}: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_link_points_to_stays_as_it_is(
    command: str, name: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run_dir / name
    outside = tmp_path / "outside"
    if own.exists():
        own.rename(outside)
    else:
        outside.write_text("kept")
    own.symlink_to(outside)
    before = {file: file.stat().st_mtime_ns for file in sorted(outside.rglob("*"))}
    content = outside.read_bytes() if outside.is_file() else b""
    assert f"{own}: a link; a run has none" in refused(command, run_dir, capsys)
    assert {file: file.stat().st_mtime_ns for file in sorted(outside.rglob("*"))} == before
    assert not content or outside.read_bytes() == content


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "t0/dialogues.parquet"])
def test_nobody_waits_at_a_pipe(
    command: str, name: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / name).unlink()
    os.mkfifo(run_dir / name)
    assert f"{name}: neither a file nor a folder" in refused(command, run_dir, capsys)


def test_a_socket_is_no_file(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "summary.json").unlink()
    here = os.getcwd()
    os.chdir(run_dir)  # a socket's path has 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("summary.json")
    finally:
        os.chdir(here)
    assert "summary.json: neither a file" in refused("report", run_dir, capsys)


def test_the_files_of_a_tracker_may_be_links(run_dir: Path) -> None:
    (run_dir / "wandb").mkdir()
    (run_dir / "wandb" / "latest-run").symlink_to(run_dir)
    assert main(["report", str(run_dir), "--out", str(run_dir.parent / "page.html")]) == 0


def test_a_path_can_not_colour_the_terminal(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page\x1b[31m.html"
    assert main(["report", str(run_dir), "--out", str(file), "--figures", f"{file}.d"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert file.is_file()
