"""Unit tests wait for nothing: no rows are gathered, no disk is synced, no certificates read twice.

What survives a crash is tested in tests/integration.
"""

import functools
import os
import ssl
from collections.abc import Iterator

import pytest

from stargate.records import store


@pytest.fixture(scope="package", autouse=True)
def nothing_waits() -> Iterator[None]:
    """For the whole package: fixtures of a module write tables, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_GATHER_SECONDS", 0.0)
        # Nobody pulls the plug here, and a test's own files are in the page cache.
        patch.setattr(os, "fsync", lambda handle: None)
        # Every HTTP client makes a context of all certificates, 70 ms; no test meets a real one.
        once = functools.cache(ssl.create_default_context)
        patch.setattr(ssl, "create_default_context", once)
        yield
