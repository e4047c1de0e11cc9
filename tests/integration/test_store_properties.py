"""The store under any sequence of appends, compactions, crashes and restarts.

A crash is simulated at the system call: from the n-th step on (write of a file's content, fsync,
rename, unlink, rmdir, mkdir) everything fails, clean-up included, as if the process were gone. A
file that was not synced keeps only a beginning of its bytes.
"""

import asyncio
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stargate.records import parquet, store
from stargate.records.repair import discovery, repair
from stargate.records.store import RunStore, table_files

pytestmark = pytest.mark.integration

# Rows of this table are made from no others, so none is outdated by the loss of another.
TABLE = "dialogues"
SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class Crash(Exception):
    """The process is gone."""


@dataclass
class Machine:
    """Counts steps; from step `crash_at` on every one fails. `torn` is what a cut file keeps."""

    crash_at: int | None = None
    torn: float = 0.0
    steps: int = 0

    def step(self, file: Path | None = None) -> None:
        self.steps += 1
        if self.crash_at is not None and self.steps >= self.crash_at:
            if self.steps == self.crash_at and file is not None and file.is_file():
                os.truncate(file, int(file.stat().st_size * self.torn))
            raise Crash


@contextmanager
def running_on(machine: Machine) -> Iterator[None]:
    """Every change of the file system that the store makes is a step of `machine`."""

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            machine.step()
            return real(*args, **kwargs)

        return call

    real_write = parquet.write_parquet

    def write(path: Path, *args: Any) -> None:
        real_write(path, *args)
        machine.step(path)

    def fsync(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        machine.step(place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_GATHER_SECONDS", 0.0)
        for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, before(getattr(os, name)))
        patch.setattr(os, "fsync", fsync)
        patch.setattr(store, "write_parquet", write)
        yield


@dataclass
class Model:
    """What must be true: rows that were acknowledged, and all that were ever handed over."""

    acknowledged: set[str] = field(default_factory=set)
    offered: set[str] = field(default_factory=set)

    def rows(self, count: int) -> list[store.Row]:
        names = [f"d{len(self.offered) + i}" for i in range(count)]
        self.offered.update(names)
        return [{"id": name, "pair_id": "p", "index": 0, "turns": []} for name in names]

    def check(self, root: Path) -> None:
        found = Counter(row["id"] for row in RunStore(root).read("t0", TABLE))
        twice = [name for name, count in found.items() if count > 1]
        assert not twice, f"twice: {twice}"
        assert self.acknowledged <= set(found), f"lost: {self.acknowledged - set(found)}"
        assert set(found) <= self.offered, f"never appended: {set(found) - self.offered}"


async def sit(root: Path, operations: Sequence[int], model: Model) -> None:
    """One process: repairs, then appends (n > 0 rows; n < 0: side by side) and compacts (0)."""
    repair(root, discovery(root))
    opened = RunStore(root)

    async def append(rows: list[store.Row]) -> None:
        await opened.append("t0", TABLE, rows)
        model.acknowledged.update(row["id"] for row in rows)

    for operation in operations:
        if operation == 0:
            opened.compact("t0")
        elif operation > 0:
            await append(model.rows(operation))
        else:
            await asyncio.gather(*(append(model.rows(1)) for _ in range(-operation)))


SITTING = st.tuples(
    st.lists(st.integers(-3, 3), max_size=7),
    st.one_of(st.none(), st.integers(1, 45)),
    st.sampled_from([0.0, 0.3, 0.9]),
)


@SETTINGS
@given(st.lists(SITTING, min_size=1, max_size=5))
def test_no_acknowledged_row_is_lost_or_doubled(
    sittings: list[tuple[list[int], int | None, float]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, model = Path(name), Model()
        for operations, crash_at, torn in sittings:
            with running_on(Machine(crash_at, torn)):
                try:
                    asyncio.run(sit(root, operations, model))
                except Crash:
                    assert crash_at is not None
            model.check(root)  # also before anything is repaired
        assert discovery(root) == []
        repair(root, [])
        model.check(root)
        left = [file.name for file in root.glob("**/.*.tmp")]
        assert left == []


@pytest.mark.parametrize("operations", [[2, 1, 0], [1, 0, 2, 1, 0], [-3, 0, 1]])
def test_a_crash_at_each_single_step(operations: list[int], tmp_path: Path) -> None:
    """The same, exhaustively for a few histories; then the next process goes on."""
    count, whole = Machine(), _new(tmp_path / "whole")
    with running_on(count):
        asyncio.run(sit(whole, operations, Model()))
    assert count.steps > 10
    for crash_at in range(1, count.steps + 1):
        root, model = _new(tmp_path / str(crash_at)), Model()
        with running_on(Machine(crash_at, 0.5)), pytest.raises(Crash):
            asyncio.run(sit(root, operations, model))
        model.check(root)
        with running_on(Machine()):
            asyncio.run(sit(root, [1, 0], model))
        model.check(root)
        assert [file.name for file in (root / "t0").iterdir()] == [f"{TABLE}.parquet"]


@SETTINGS
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.integers(0, 2**32),
    st.sampled_from(["flip", "cut", "empty"]),
)
def test_damage_is_found_and_costs_that_file_only(
    operations: list[int], seed: int, kind: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, model = Path(name), Model()
        with running_on(Machine()):
            asyncio.run(sit(root, operations, model))
        files = table_files(root / "t0" / TABLE)
        if not files:
            return
        draw = random.Random(seed)
        victim = draw.choice(files)
        lost = {row["id"] for b in parquet.read_batches(victim) for row in b.to_pylist()}
        content = bytearray(victim.read_bytes())
        if kind == "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[0 if kind == "empty" else draw.randrange(len(content)) :]
        victim.write_bytes(content)
        damaged = discovery(root)
        # A flipped bit in the mark before the digest makes a file look like one of an earlier
        # version: then every page is still checked, and all rows are there.
        if not damaged:
            assert kind == "flip"
            model.check(root)
            return
        assert [damage.file for damage in damaged] == [victim]
        [(_, place)] = repair(root, damaged).set_aside
        assert place.name == f"{victim.name}.damaged-1"
        assert place.read_bytes() == bytes(content)
        model.acknowledged -= lost
        model.check(root)
        with running_on(Machine()):
            asyncio.run(sit(root, [2, 0], model))
        model.check(root)


def _new(root: Path) -> Path:
    root.mkdir()
    return root
