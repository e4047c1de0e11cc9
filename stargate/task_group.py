"""Running coroutines side by side, with one error instead of a group of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stargate.errors import StargateError


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An asyncio.TaskGroup whose first error cancels the rest and is raised by itself.

    Callers and the command line handle plain errors; the others of a group are nearly always
    consequences. A StargateError goes before any other, because it tells the user what to do.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [errors]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        else:
            leaves.append(error)
    return next((leaf for leaf in leaves if isinstance(leaf, StargateError)), leaves[0])
