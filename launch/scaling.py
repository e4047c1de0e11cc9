"""The run's side of `stargate scale`: looks for requests while it plays, and has them done.

    RUN/scale.json -> following -> Scaler (actors/runtime/scaler.py) -> RUN/scale-answer.json

One request at a time. Whatever goes wrong with one is an answer and a line; the run goes on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from stargate.errors import DataError, MachineError, StargateError
from stargate.monitoring.progress import logged
from stargate.resources.scale_request import ScaleRequest, shown, take_request, write_answer

_log = logging.getLogger(__name__)

# Seconds between looks for a request.
POLL_SECONDS = 1.0


class Scale(Protocol):
    """actors/runtime/scaler.py: Scaler."""

    @property
    def counts(self) -> dict[str, int]: ...

    async def scale(self, targets: Mapping[str, int]) -> str: ...


@asynccontextmanager
async def following(
    root: Path, scaler: Scale | None, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Requests for the run in `root` are done as long as the block lasts.

    What was asked before the run went on is dropped. Without a scaler no request is taken.
    """
    if scaler is None:
        yield
        return
    requests = _Requests(root, scaler, say)
    await requests.drop_old()
    task = asyncio.create_task(requests.work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


class _Requests:
    def __init__(self, root: Path, scaler: Scale, say: Callable[[str], None]) -> None:
        self._root, self._scaler, self._tell = root, scaler, logged(say, __name__)
        self._doing: asyncio.Task[None] | None = None

    async def drop_old(self) -> None:
        request = await self._taken()
        if request is not None:
            self._tell(f"scale: dropped a request from before: {shown(request.engines)}")
            await self._answer(request, "refused", "the run began after this was asked")

    async def work(self) -> None:
        try:
            while True:
                await asyncio.sleep(POLL_SECONDS)
                request = await self._taken()
                if request is None:
                    continue
                if self._doing is not None and not self._doing.done():
                    text = "an earlier request is not done yet; try again when it is"
                    await self._answer(request, "refused", text)
                else:
                    self._doing = asyncio.create_task(self._do(request))
        finally:
            if self._doing is not None and not self._doing.done():
                self._doing.cancel()
                await asyncio.wait({self._doing})

    async def _taken(self) -> ScaleRequest | None:
        # In a thread: a file system that hangs must not hold up the dialogues.
        try:
            return await asyncio.to_thread(take_request, self._root)
        except (DataError, OSError) as error:
            self._tell(f"scale: refused: {error}")
            return None

    async def _do(self, request: ScaleRequest) -> None:
        present = shown(self._scaler.counts)
        text = f"scale: asked for {shown(request.engines)}, there is {present}"
        self._tell(text)
        try:
            await self._answer(request, "working", text)
            state, text = "done", await self._scaler.scale(request.engines)
        except StargateError as error:
            present = shown(self._scaler.counts)
            state, text = "refused", f"{error}; there is {present}"
        except asyncio.CancelledError:
            await self._answer(request, "refused", "the run ended before it was done")
            raise
        except Exception:  # a defect, which must not end a run that can go on
            _log.exception("scaling failed")
            state, text = "refused", "it failed in a way that it should not: see logs/driver.log"
        self._tell(f"scale: {state}: {text}")
        await self._answer(request, state, text)

    async def _answer(self, request: ScaleRequest, state: str, text: str) -> None:
        call = asyncio.to_thread(write_answer, self._root, request, state, text)
        writing = asyncio.ensure_future(call)
        try:
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait({writing})  # or the next answer would be written beside it
                raise
        except (MachineError, OSError) as error:  # who asked hears nothing; the log has it
            _log.warning("scale: the answer can't be written: %s", error)
