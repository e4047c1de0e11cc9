"""Where sockets go: a folder whose names the system and the libraries can take."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stargate.actors.process import paths
from stargate.actors.process.paths import socket_folder
from stargate.errors import MachineError


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder in place of /tmp and the others."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(paths, "_SHORT_FOLDERS", (f"{folder}/none", folder))
        yield Path(folder)


def test_a_temporary_folder_that_fits_is_used(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = short / ("m" * (39 - len(str(short)) - 1))
    mine.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(mine))
    assert socket_folder() == str(mine)
    longest = f"{mine}/ray/session_2026-11-30_21-10-12_661802_4194304/sockets/plasma_store"
    assert len(longest) <= 107


@pytest.mark.parametrize("name", ["l" * 90, "é", "missing", "file"])
def test_else_a_short_one(short: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    mine = short / name
    if name == "file":
        mine.touch()
    elif name != "missing":
        mine.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(mine))
    assert socket_folder() == str(short)


def test_none_is_one_line(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short / "é"))
    monkeypatch.setattr(paths, "_SHORT_FOLDERS", (str(short / "none"),))
    with pytest.raises(MachineError, match="at most 39 ASCII characters; tried") as error:
        socket_folder()
    assert str(error.value).count("\n") == 0
    assert os.fspath(short / "none") in str(error.value)
