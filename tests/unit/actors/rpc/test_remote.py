"""actors/rpc/remote.py: what Ray raises becomes what we raise."""

import asyncio

import pytest
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
)

from stargate.actors.rpc.remote import ActorDied, remote
from stargate.errors import DataError


async def _raises(error: BaseException) -> None:
    raise error


def test_a_dead_actor_is_ours() -> None:
    with pytest.raises(ActorDied, match="an actor died"):
        asyncio.run(remote(_raises(ActorDiedError())))


def test_a_dead_node_is_a_dead_actor() -> None:
    with pytest.raises(ActorDied, match="an actor died: the node is gone"):
        asyncio.run(remote(_raises(NodeDiedError("the node is gone"))))


def test_what_rays_memory_monitor_ended_is_a_dead_actor_with_its_cause() -> None:
    """Ray gives pages of text about it, in an error that is no RayActorError."""
    with pytest.raises(ActorDied) as caught:
        asyncio.run(remote(_raises(OutOfMemoryError("1 worker(s) were killed\n" * 50))))
    assert str(caught.value) == "Ray ended it because its machine ran out of memory"


def test_our_own_error_comes_as_it_was_raised() -> None:
    task_error = RayTaskError("f", "traceback", DataError("line 3: no text"))
    with pytest.raises(DataError, match="line 3: no text"):
        asyncio.run(remote(_raises(task_error)))


def test_a_defect_stays_what_it_is() -> None:
    task_error = RayTaskError("f", "traceback", ZeroDivisionError("x"))
    with pytest.raises(RayTaskError):
        asyncio.run(remote(_raises(task_error)))
