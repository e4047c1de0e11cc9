"""Folders that are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stargate.records.files import whole_folder, write_at, write_text


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_device_is_written_and_not_replaced(tmp_path: Path) -> None:
    terminal, name = os.openpty()
    device = Path(os.ttyname(name))
    write_text(device, "said\n")
    assert os.read(terminal, 100).strip() == b"said"
    assert device.is_char_device()
    os.close(terminal)
    os.close(name)


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
    beyond = f".m1.{10**20}.tmp"  # a number that no process has
    for name in (f".m1.{child.pid}.tmp", beyond, ".m1.1.tmp", f".m2.{child.pid}.tmp"):
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "m1"):
        pass
    assert _names(tmp_path) == [".m1.1.tmp", f".m2.{child.pid}.tmp", "m1"]


# --- bytes at their place in a file


@pytest.mark.parametrize("most", [1, 3, 100])
def test_short_writes_go_on_where_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    whole = os.pwrite
    taken: list[tuple[int, int]] = []

    def short(handle: int, data: memoryview, offset: int) -> int:
        taken.append((offset, len(data)))
        return whole(handle, data[:most], offset)

    monkeypatch.setattr(os, "pwrite", short)
    write_at(tmp_path / "file", 2, b"abcdefg")
    assert (tmp_path / "file").read_bytes() == b"\0\0abcdefg"
    calls = {1: [(2 + n, 7 - n) for n in range(7)], 3: [(2, 7), (5, 4), (8, 1)], 100: [(2, 7)]}
    assert taken == calls[most]


def test_chunks_may_come_in_any_order_and_leave_the_rest_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    write_at(file, 6, np.frombuffer(b"xy", np.uint8))
    write_at(file, 0, b"ab")
    write_at(file, 4, b"")
    assert file.read_bytes() == b"ab2345xy89"


def test_a_new_file_is_its_owners_and_no_handle_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    handles = set(os.listdir("/proc/self/fd"))
    write_at(tmp_path / "file", 0, b"a")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write_at(tmp_path / "file", 0, b"a")
    assert set(os.listdir("/proc/self/fd")) == handles
