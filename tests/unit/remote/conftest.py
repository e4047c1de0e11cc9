"""A storage in memory, a run that lands on it, and nothing that waits."""

from pathlib import Path

import pytest

from stargate.records.store import RunStore
from stargate.remote.storage import Storage
from tests.fakes.flaky_storage import FlakyHandler, memory_storage
from tests.fakes.remote_run import Clock, new_run, without_pauses


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch, 0.01, 0.02)
    monkeypatch.setattr("stargate.remote.fetch._PAUSES", (0.0,) * 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def handler() -> FlakyHandler:
    return FlakyHandler()


@pytest.fixture
def storage(handler: FlakyHandler) -> Storage:
    """Fails as `handler` says."""
    return memory_storage(handler)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A run that nobody works on."""
    return new_run(tmp_path / "run")
