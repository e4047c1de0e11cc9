"""Coroutines side by side: at most so many, and with one error instead of a group of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from stargate.errors import StargateError

T = TypeVar("T")


async def run_bounded(
    items: Iterable[T], at_most: int, work: Callable[[T], Awaitable[object]]
) -> None:
    """`work` on every item, at most `at_most` at a time. The first error cancels the rest."""
    places = asyncio.Semaphore(at_most)

    async def one(item: T) -> None:
        try:
            await work(item)
        finally:
            places.release()

    async with task_group() as group:
        for item in items:
            await places.acquire()  # no more tasks than may run
            group.create_task(one(item))


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
