"""Dialogues begin as fast as questions are written, not all at once.

    the first few begin -> a question is written -> its answer is due, and one more dialogue begins

Were all to begin at once, the Roleplayer would wait until the first of very many questions is
written, and then meet all of them together. So it has work after a second instead of three
(docs/lab-notes.md). A dialogue writes one question or more, so after a few seconds there are more
places than dialogues, and none ever waits again until all have ended.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class SlowStart:
    """Lets dialogues begin in the order in which they ask: `first` at once, then one more for each
    question that is written, or for a dialogue that ends without any. When none is left, the next
    ones begin slowly again. `first` 0: no dialogue waits.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._places = first  # how many dialogues may have begun
        self._num_begun = 0
        self._num_playing = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def dialogue(self) -> AsyncIterator[Callable[[], None]]:
        """One dialogue, from its turn to begin to its end. Call what it gives at each question."""
        if not self._first:
            yield _ignore
            return
        await self._begin()
        num_questions = 0

        def wrote_question() -> None:
            nonlocal num_questions
            num_questions += 1
            self._add_place()

        try:
            yield wrote_question
        finally:
            self._num_playing -= 1
            if not num_questions:
                self._add_place()
            if not self._num_playing and not self._waiting:
                self._num_begun, self._places = 0, self._first

    async def _begin(self) -> None:
        if self._num_begun >= self._places or self._waiting:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn  # whoever ends this wait has counted this dialogue
            except asyncio.CancelledError:
                if turn.cancelled():
                    if turn in self._waiting:
                        self._waiting.remove(turn)
                else:
                    self._num_playing -= 1
                    self._add_place()  # for the next one
                raise
            return
        self._num_begun += 1
        self._num_playing += 1

    def _add_place(self) -> None:
        self._places += 1
        while self._waiting and self._num_begun < self._places:
            turn = self._waiting.popleft()
            if not turn.done():
                self._num_begun += 1
                self._num_playing += 1
                turn.set_result(None)


def _ignore() -> None:
    pass
