"""Unit tests wait for nothing: rows are written at once instead of being gathered first."""

import pytest

from stargate import store


@pytest.fixture(autouse=True)
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_GATHER_SECONDS", 0.0)
