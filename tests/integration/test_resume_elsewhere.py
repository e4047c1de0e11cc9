"""A whole run whose machine is lost with its disk: gone on with from shared storage, on another.

Everything is as in a run but the actors (resume_world.py). The cut is a real one: the storage's
folder is copied at that moment, while the landing thread is at whatever it is at.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from stargate.config.uri import parse_uri
from stargate.remote import lease as lease_module
from stargate.remote.fetch import fetch
from stargate.remote.storage import open_storage
from tests.fakes.remote_run import quiet
from tests.integration.resume_world import (
    EVENTS,
    World,
    events,
    play,
    records,
    summary_of,
)

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_SETTLE_SECONDS", 0.0)


@dataclass
class LostWorld(World):
    """Its storage is copied when it dies; nothing that lands after that counts."""

    shared: Path = Path()

    def step(self, name: str) -> None:
        if len(self.calls) + 1 == self.kill_at:
            _copy(self.shared, self.shared.with_name("left"))
        super().step(name)


def _copy(source: Path, target: Path) -> None:
    """Also while files come and go: those that are gone are left out."""

    def copy(one: str, other: str) -> str:
        try:
            return shutil.copy2(one, other)
        except FileNotFoundError:
            return other

    shutil.copytree(source, target, copy_function=copy)


def test_a_run_whose_machine_is_lost_at_any_call_goes_on_on_another(
    tmp_path: Path,
) -> None:
    whole = play(World(tmp_path / "whole" / "run"))
    places = [n for n, call in enumerate(whole.calls, start=1) if call.startswith(("tr", "pu"))]
    for kill_at in [2, *places, len(whole.calls) - 1]:
        folder = tmp_path / str(kill_at)
        records_at = {"uri": f"file://{folder}/shared", "interval_s": 0.05}
        first = LostWorld(folder / "one" / "run", kill_at, shared=folder / "shared")
        play(first, records=records_at)
        shutil.rmtree(first.root)
        storage = open_storage(parse_uri(f"file://{folder}/left/run"))
        second = World(folder / "two" / "run")
        assert fetch(storage, second.root, quiet, models=True).damaged == ()
        play(second)
        third = folder / "three" / "run"
        fetched = fetch(storage, third, quiet, models=True)
        assert fetched.is_complete and fetched.damaged == ()
        for root in (second.root, third):
            assert records(root) == records(whole.root), kill_at
            assert events(root) == EVENTS, kill_at
            assert summary_of(root)["status"] == "finished"
        assert (third / "models" / "m2" / "config.json").is_file()
