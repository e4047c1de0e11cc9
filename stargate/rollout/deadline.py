"""A deadline per turn, so that what never ends can't hold a run up.

attempt 1 late -> cancelled, begun anew under a session of its own (maybe on another replica)
attempt 2 late -> the record is dropped as "turn_timeout" and counted, the run goes on
several given up with no turn ended in between -> EngineError: everything hangs, the run stops
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stargate.errors import EngineError, RecordDropped

T = TypeVar("T")

_ATTEMPTS = 2
# Turns given up one after the other, with none ended in between: that is no unlucky replica.
_MAX_GIVEN_UP_IN_A_ROW = 8
_log = logging.getLogger(__name__)


class TurnWatch:
    """Watches over the turns of all dialogues of one run. `num_repeated` counts second attempts."""

    def __init__(self, seconds: float) -> None:
        self.num_repeated = 0
        self._seconds = seconds
        self._given_up_in_a_row = 0

    async def run(self, turn: Callable[[int], Awaitable[T]], where: str) -> T:
        """What `turn(attempt)` returns; attempts are 0 and 1.

        Raises RecordDropped ("turn_timeout"), or EngineError when no turn ends any more.
        """
        for attempt in range(_ATTEMPTS):
            deadline = asyncio.timeout(self._seconds)
            try:
                async with deadline:
                    result = await turn(attempt)
            except TimeoutError:
                if not deadline.expired():  # the turn's own
                    raise
                _log.warning("%s: no end after %g s (attempt %d)", where, self._seconds, attempt)
                self.num_repeated += attempt == 0
            except RecordDropped:  # the engine did answer
                self._given_up_in_a_row = 0
                raise
            else:
                self._given_up_in_a_row = 0
                return result
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= _MAX_GIVEN_UP_IN_A_ROW:
            raise EngineError(
                f"{where}: no turn ends any more: {self._given_up_in_a_row} in a row were given up "
                f"after {_ATTEMPTS} x {self._seconds:g} s, and none ended in between; an engine "
                "hangs (see logs/ of the run), or rollout.turn_timeout_s is too short for this "
                "machine"
            )
        raise RecordDropped(
            "turn_timeout", where, f"no end within {self._seconds:g} s, {_ATTEMPTS} times"
        )


def session_of(dialogue_id: str, attempt: int) -> str:
    """The engine session of an attempt at a turn.

    A second attempt has one of its own: its requests' ids are new, while the late ones may still
    run, and the pool is free to choose another replica.
    """
    return dialogue_id if attempt == 0 else f"{dialogue_id}#{attempt + 1}"
