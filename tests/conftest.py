"""How values are drawn in tests that draw them, and what tests say of themselves."""

import asyncio
import inspect
import os
from collections.abc import Generator, Iterable
from typing import Any

import pytest
from hypothesis import settings

from stargate.resources.preflight import vllm_build

# A suite must not fail by chance, so it always draws the same values unless random ones are asked
# for (test_fuzz_config.py); and has no deadline: a busy machine is no failure.
_RANDOM = os.environ.get("STARGATE_FUZZ", "0") != "0"
settings.register_profile("stargate", deadline=None, derandomize=not _RANDOM)
settings.load_profile("stargate")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine runs in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_where_engines_need_a_gpu(items, vllm_build())


def skip_where_engines_need_a_gpu(items: Iterable[pytest.Item], build: str | None) -> None:
    """Tests marked `engines` start them on the CPU, where a GPU build of vLLM has none."""
    if build == "cuda":
        reason = "starts engines on the CPU, and the installed vLLM is built for GPUs"
        for item in items:
            if item.get_closest_marker("engines"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """pytest-xdist can't send half a character, and tests of such texts log and fail with some."""
    return _whole((yield))


def _whole(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {_whole(key): _whole(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(_whole, data))
    return data
