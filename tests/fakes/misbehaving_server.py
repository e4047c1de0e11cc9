"""An OpenAI-compatible server that misbehaves on demand: raw HTTP/1.1 over asyncio, in a thread of
its own.

    behave(Seen) -> Behaviour      per request: from a seeded mixture, or a test's own function

It counts everything that a test may want to know: when requests arrived, how often each was asked,
how often each was answered in full.
"""

import asyncio
import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Any, Self


class Behaviour(StrEnum):
    OK = "ok"
    RATE_LIMIT_SECONDS = "rate_limit_seconds"
    RATE_LIMIT_MS = "rate_limit_ms"
    RATE_LIMIT_DATE = "rate_limit_date"
    ERROR_500 = "error_500"
    ERROR_503_HTML = "error_503_html"
    HANG = "hang"
    DISCONNECT = "disconnect"
    CUT_OFF_LENGTH = "cut_off_length"
    CUT_OFF_CHUNKED = "cut_off_chunked"
    MALFORMED_JSON = "malformed_json"
    NO_CHOICES = "no_choices"
    WRONG_TYPE = "wrong_type"
    ECHO_KEY_401 = "echo_key_401"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived. `times` counts this body's arrivals, this one included."""

    index: int
    times: int
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The last message, by which tests tell requests apart."""
        return str(self.body["messages"][-1]["content"])


@dataclass(frozen=True)
class Raw:
    """An answer given by the test itself."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Behave = Callable[[Seen], Behaviour | Raw]


def always_ok(seen: Seen) -> Behaviour:
    return Behaviour.OK


def mixture(seed: int, shares: Mapping[Behaviour, float]) -> Behave:
    """Each request draws from `shares`; what is left to 1 is OK."""
    rng = random.Random(seed)
    kinds = [*shares, Behaviour.OK]
    weights = [*shares.values(), 1.0 - sum(shares.values())]
    return lambda seen: rng.choices(kinds, weights)[0]


def answer_to(text: str) -> str:
    """What the server says to a message."""
    return f"answer to {text}"


def completion(
    text: str | None,
    finish_reason: str | None = "stop",
    refusal: str | None = None,
    usage: tuple[int, int] | None = (100, 20),
) -> bytes:
    """The body of a chat completion."""
    tree: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "fake-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
                "finish_reason": finish_reason,
            }
        ],
    }
    if usage is not None:
        tree["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return json.dumps(tree).encode()


@dataclass
class Log:
    """What the server saw."""

    arrivals: list[float] = field(default_factory=list)  # s, monotonic
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)  # OK answers sent in full
    behaviours: Counter[str] = field(default_factory=Counter)
    open_requests: int = 0
    most_open_requests: int = 0

    def most_within(self, seconds: float) -> int:
        """The most arrivals in any window of so many seconds."""
        times = sorted(self.arrivals)
        most = first = 0
        for last, time_ in enumerate(times):
            while time_ - times[first] >= seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


class MisbehavingServer:
    """Use as a context manager; `url` is its base_url. `delay` (s) comes before each OK answer."""

    def __init__(self, behave: Behave = always_ok, delay: float = 0.0) -> None:
        self.behave = behave
        self.delay = delay
        self.log = Log()
        self.seen: list[Seen] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the fake server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # Clients that go away in the middle are the tests' business, not an error here.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_one(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False closes the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        content = await reader.readexactly(int(headers["content-length"]))
        self.log.arrivals.append(time.monotonic())
        text = content.decode()
        self.log.asked[text] += 1
        path = head[0].split(" ")[1]
        seen = Seen(len(self.seen), self.log.asked[text], path, headers, json.loads(text))
        self.seen.append(seen)
        behaviour = self.behave(seen)
        name = behaviour.value if isinstance(behaviour, Behaviour) else f"raw_{behaviour.status}"
        self.log.behaviours[name] += 1
        self.log.open_requests += 1
        self.log.most_open_requests = max(self.log.most_open_requests, self.log.open_requests)
        try:
            if isinstance(behaviour, Raw):
                await _send(writer, behaviour)
                return True
            return await self._act(behaviour, seen, text, writer)
        finally:
            self.log.open_requests -= 1

    async def _act(
        self, behaviour: Behaviour, seen: Seen, text: str, writer: asyncio.StreamWriter
    ) -> bool:
        body = completion(answer_to(seen.text))
        if behaviour is Behaviour.OK:
            await asyncio.sleep(self.delay)
            await _send(writer, Raw(200, body))
            self.log.answered[text] += 1
        elif behaviour is Behaviour.HANG:
            await self._stop.wait()
        elif behaviour is Behaviour.DISCONNECT:
            return False
        elif behaviour is Behaviour.CUT_OFF_LENGTH:
            await _write(writer, _head(200, "application/json", len(body)) + body[: len(body) // 2])
            return False
        elif behaviour is Behaviour.CUT_OFF_CHUNKED:
            await _write(
                writer,
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n" % len(body) + body + b"\r\n",
            )
            return False
        else:
            await _send(writer, _simple(behaviour, body, seen))
        return True


def _simple(behaviour: Behaviour, body: bytes, seen: Seen) -> Raw:
    """The misbehaviours that are whole HTTP answers."""
    if behaviour is Behaviour.ECHO_KEY_401:
        given = seen.headers.get("authorization", "")
        error = {"error": {"message": f"Incorrect API key provided: {given}", "code": "bad_key"}}
        return Raw(401, json.dumps(error).encode(), headers=(("x-echo", given),))
    limit = json.dumps({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).encode()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    answers = {
        Behaviour.RATE_LIMIT_SECONDS: Raw(429, limit, headers=(("Retry-After", "0.01"),)),
        Behaviour.RATE_LIMIT_MS: Raw(429, limit, headers=(("Retry-After-Ms", "5"),)),
        Behaviour.RATE_LIMIT_DATE: Raw(429, limit, headers=(("Retry-After", date),)),
        Behaviour.ERROR_500: Raw(500, b'{"error": {"message": "oops"}}'),
        Behaviour.ERROR_503_HTML: Raw(503, b"<html>down</html>", "text/html"),
        Behaviour.MALFORMED_JSON: Raw(200, body[:-7]),
        Behaviour.NO_CHOICES: Raw(200, b'{"error": {"message": "overloaded"}}'),
        Behaviour.WRONG_TYPE: Raw(200, body, "text/html; charset=utf-8"),
    }
    return answers[behaviour]


async def _send(writer: asyncio.StreamWriter, raw: Raw) -> None:
    head = _head(raw.status, raw.content_type, len(raw.body), raw.headers)
    await _write(writer, head + raw.body)


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def _head(
    status: int, content_type: str, length: int, headers: tuple[tuple[str, str], ...] = ()
) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", f"content-type: {content_type}"]
    lines += [f"content-length: {length}"] + [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
