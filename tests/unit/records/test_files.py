"""Folders that are written whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from stargate.records.files import whole_folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_in_place_of_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "new" / "m1"
    for content in ("first", "second"):
        with whole_folder(target) as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / content).touch()
        assert _names(target / "inner") == [content]
    with pytest.raises(ValueError, match="no more"), whole_folder(target) as partial:
        (partial / "half").touch()
        raise ValueError("no more")
    assert _names(target / "inner") == ["second"]
    assert _names(target.parent) == ["m1"]


def test_a_folder_that_cant_be_renamed_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m1"
    target.mkdir()
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and not self.name.startswith(".m1.old"):
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"), whole_folder(target) as partial:
        (partial / "weights").touch()
    assert _names(tmp_path) == ["m1"] and _names(target) == []


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for name in (f".m1.{child.pid}.tmp", ".m1.1.tmp", f".m2.{child.pid}.tmp"):
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "m1"):
        pass
    assert _names(tmp_path) == [".m1.1.tmp", f".m2.{child.pid}.tmp", "m1"]
