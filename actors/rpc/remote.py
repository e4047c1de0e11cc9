"""Awaiting Ray calls: our own errors as they were raised there, a dead actor as one of ours."""

from collections.abc import Awaitable
from typing import TypeVar

from stargate.errors import EngineError, StargateError

_Result = TypeVar("_Result")


class ActorDied(EngineError):
    """An actor is gone, or what it hosts is: calls to it will never succeed again."""


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
