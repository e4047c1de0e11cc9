"""Every answer ever paid for, by the key of its request.

An answer is on the disk before `store` returns it. The first answer to a request stays: whoever
comes with a second one (two processes without locks, a restored backup) gets the first.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stargate.oracle.database import Database, Operation, T
from stargate.oracle.records import ChatRequest, Reply, Usage

_COLUMNS = "text, refusal, finish_reason, prompt_tokens, completion_tokens, usage_estimated, model"
# While another process asks the same, look for its answer so often (s), more and more seldom.
_FIRST_POLL_S = 0.02
_LAST_POLL_S = 1.0
# Keys take the lock numbers below this, sessions (cost.py) those above.
KEY_LOCKS = 1 << 62


class AnswerCache:
    """The answers in one Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: bytes) -> Reply | None:
        """The stored reply to a request, or None."""
        rows = self._database.read(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (key,))
        return _reply(rows[0]) if rows else None

    async def store(
        self, key: bytes, canonical: str, request: ChatRequest, reply: Reply, also: Operation[T]
    ) -> tuple[Reply, T]:
        """Keeps a reply and runs `also` (the meter) in one transaction. Returns the reply that is
        kept, and what `also` returned.
        """

        def operation(connection: sqlite3.Connection) -> tuple[Reply, T]:
            connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO NOTHING",
                (
                    *(key, time.time(), request.purpose, request.record, canonical),
                    *(reply.text, reply.refusal, reply.finish_reason, reply.model),
                    *(reply.usage.prompt_tokens, reply.usage.completion_tokens),
                    reply.usage.estimated,
                ),
            )
            row = connection.execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (key,))
            return _reply(row.fetchone()), also(connection)

        return await self._database.submit(operation)

    @asynccontextmanager
    async def claim(self, key: bytes) -> AsyncIterator[None]:
        """While it is held, no other process asks the same. Look the answer up again inside.

        A claim dies with its process, so a killed one never blocks others.
        """
        number = int.from_bytes(key[:8], "big") % KEY_LOCKS
        wait = _FIRST_POLL_S
        while not self._database.locks.try_lock(number):
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, _LAST_POLL_S)
        try:
            yield
        finally:
            self._database.locks.unlock(number)


def _reply(row: tuple[str, str | None, str, int, int, int, str]) -> Reply:
    text, refusal, finish_reason, prompt_tokens, completion_tokens, estimated, model = row
    usage = Usage(prompt_tokens, completion_tokens, bool(estimated))
    return Reply(text, refusal, finish_reason, usage, model)
