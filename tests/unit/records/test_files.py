"""Bytes at their place in a file, also when the system takes fewer than it was given."""

import os
from pathlib import Path

import numpy as np
import pytest

from stargate.records.files import write_at


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
