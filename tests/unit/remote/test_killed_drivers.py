"""Drivers that die at any call of the storage and move between machines: no row twice or lost."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stargate.records.repair import discovery, repair
from stargate.records.store import RunStore
from stargate.remote.fetch import fetch
from stargate.remote.sync import RemoteSync
from tests.fakes.flaky_storage import Killed, KilledStorage, memory_storage
from tests.fakes.remote_run import (
    add_scores,
    add_selection,
    new_run,
    new_sync,
    quiet,
    score_ids,
)

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.integers(1, 3)),
        st.tuples(st.just("compact"), st.just(0)),
        st.tuples(st.just("round"), st.just(0)),
        st.tuples(st.just("crash"), st.integers(1, 12)),  # at this call of the storage
        st.tuples(st.just("tear"), st.integers(1, 12)),
        st.tuples(st.just("move"), st.just(0)),  # the machine is lost, another one goes on
    ),
    max_size=10,
)


@settings(max_examples=20, deadline=None)
@given(_STEPS)
def test_any_writes_crashes_and_fetches_keep_rows_exactly_once(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        World(Path(folder)).play(steps)


@pytest.mark.parametrize("how", ["crash", "tear"])
def test_a_driver_killed_at_each_call_of_the_storage(tmp_path: Path, how: str) -> None:
    for call in range(1, 13):
        steps = [("rows", 2), (how, call), ("compact", 0), ("rows", 1), (how, call)]
        World(tmp_path / str(call)).play(steps)


class World:
    """A run whose driver dies and moves between machines; scores, and a selection for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = memory_storage(kind=KilledStorage)
        self.num_fetched = self.num_wanted = self.num_damaged = 0
        self.settled: set[str] = set()  # scores that must be there whatever happens
        self.root = folder / "first"
        self.store = new_run(self.root)
        self.landing = self.begun()

    def begun(self) -> RemoteSync:
        work = new_sync(self.storage, self.root)
        work._lease._write()
        work._read_state()
        return work

    def play(self, steps: list[tuple[str, int]]) -> None:
        self.rounds()
        for what, number in steps:
            if what == "rows":
                self.num_wanted += number
                self.make()
            elif what == "compact":
                self.store.compact("t0")
            elif what == "round":
                self.landing._round()
                self.check(self.fetch())
            elif what in ("crash", "tear"):
                self.crash(number, tears=what == "tear")
            else:
                self.move(self.fetch())
        self.make()
        self.rounds()
        there = self.fetch()
        wanted = [f"d{i}" for i in range(self.num_wanted)]
        assert sorted(score_ids(there)) == sorted(wanted)
        assert sorted(self.selected(there)) == sorted(wanted)

    def make(self) -> None:
        """Makes all rows that are wanted and not there, as a resumed run does."""
        known, selected = set(score_ids(self.root)), set(self.selected(self.root))
        for number in range(self.num_wanted):
            if f"d{number}" not in known:
                add_scores(self.store, number)
            if f"d{number}" not in selected:
                add_selection(self.store, number)

    def rounds(self) -> None:
        while not self.landing._round():
            pass
        self.settled = set(score_ids(self.root))

    def crash(self, call: int, *, tears: bool) -> None:
        self.storage.num_calls, self.storage.dies_at = 0, call
        self.storage.tears = tears
        try:
            self.landing._round()
            self.landing._round()
        except Killed:
            pass
        finally:
            self.storage.dies_at = None
        there = self.fetch()
        if not tears:
            self.check(there)
            assert self.settled <= set(score_ids(there))
        if call % 2:  # the disk is lost as well
            self.move(there)
        else:
            self.store = RunStore(self.root)
            self.landing = self.begun()
            self.rounds()

    def fetch(self) -> Path:
        self.num_fetched += 1
        there = self.folder / f"machine-{self.num_fetched}"
        self.num_damaged = len(fetch(self.storage, there, quiet, models=True).damaged)
        return there

    def check(self, there: Path) -> None:
        assert self.num_damaged == 0
        ids, selected = score_ids(there), self.selected(there)
        assert len(ids) == len(set(ids)) and len(selected) == len(set(selected))
        assert set(selected) <= set(ids)  # nothing without what it was made from

    def move(self, there: Path) -> None:
        repair(there, discovery(there))
        ids, selected = score_ids(there), self.selected(there)
        assert len(ids) == len(set(ids)) and set(selected) <= set(ids)
        self.root, self.store = there, RunStore(there)
        self.landing = self.begun()
        self.rounds()

    @staticmethod
    def selected(root: Path) -> list[str]:
        return [row["dialogue_id"] for row in RunStore(root).read("t0", "selections")]
