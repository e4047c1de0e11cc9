"""Unit tests wait for nothing: no rows are gathered, no disk is synced, no certificates read twice.

What survives a crash is tested in tests/integration.
"""

import functools
import os
import ssl

import pytest

from stargate import store


@pytest.fixture(autouse=True)
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_GATHER_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here, and a test's own files are in the page cache."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session", autouse=True)
def certificates_read_once() -> None:
    """Every HTTP client makes a context of all certificates, 70 ms; no test meets a real one."""
    ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]
