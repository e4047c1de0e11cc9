"""Awaiting Ray calls: our own errors as they were raised there, a dead actor as one of ours.

`within` gives a call a deadline: an actor that is alive but stands still answers nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stargate.errors import EngineError, StargateError

_Result = TypeVar("_Result")


class ActorDied(EngineError):
    """An actor is gone, or what it hosts is: calls to it will never succeed again."""


class ActorHangs(EngineError):
    """An actor has not answered in time. It may live, but must be ended as if it had died."""


async def within(
    call: Awaitable[_Result],
    seconds: float,
    late: str,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> _Result:
    """What a call returns. Raises ActorHangs with the text `late` after `seconds`; `sleep` is the
    clock.
    """
    calling, timer = asyncio.ensure_future(call), asyncio.ensure_future(sleep(seconds))
    try:
        await asyncio.wait({calling, timer}, return_when=asyncio.FIRST_COMPLETED)
        if not calling.done():
            raise ActorHangs(late)
        return await calling
    finally:
        calling.cancel()
        timer.cancel()


async def remote(call: Awaitable[_Result]) -> _Result:
    """Awaits a remote call.

    Raises our own errors as they were raised there; a dead actor is ActorDied.
    """
    # Here: what only handles callers must be importable without Ray.
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError

    try:
        return await call
    except RayTaskError as error:
        if isinstance(error.cause, StargateError):
            raise error.cause from None
        raise
    except OutOfMemoryError as error:  # Ray's memory monitor; no RayActorError, whatever it ends
        raise ActorDied("Ray ended it because its machine ran out of memory") from error
    except (RayActorError, NodeDiedError) as error:
        raise ActorDied(f"an actor died: {' '.join(str(error).split())[:300]}") from error
