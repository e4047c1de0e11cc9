"""How many requests per second the Oracle client can handle itself, on one core.

    this process, on one core: Oracle (limits, retries, meter, durable cache)
        <- HTTP on loopback -> another process, on another core: a server that answers at once

Run it with `python benchmarks/oracle.py`; it prints a card, then one JSON line. `--serve` is the
server's side.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stargate.config.oracle import CostConfig, LimitsConfig, OpenAIOracleConfig, PriceConfig
from stargate.oracle.base import stream
from stargate.oracle.client import Oracle
from stargate.oracle.records import ChatRequest, chat

MODEL = "instant"
# A gold of the paper has about 300 tokens, its prompt (task, persona, instruction) about 600.
_ANSWER = "You asked how to plan your week, so here is a plan that fits you. " * 18
_PROMPT = "A persona's profile, a task and an instruction of the usual length. " * 36


def run_benchmark(num_requests: int = 5000, concurrency: int = 64) -> dict[str, Any]:
    """Measures calls with and without a budget, and cached answers. Needs two cores to be fair."""
    cores = sorted(os.sched_getaffinity(0))
    with _one_core(cores[0]), _server(cores[-1]) as url, tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = {}
        for name, max_cost in (("plain", None), ("capped", 1e6)):
            path = Path(folder) / f"{name}.sqlite"
            config = _config(url, concurrency, max_cost)
            for prefix in ("", "cached_"):
                phase = asyncio.run(_measure(config, path, num_requests, concurrency))
                results.update({f"{name}_{prefix}{key}": value for key, value in phase.items()})
    return {
        "benchmark": "oracle",
        "num_requests": num_requests,
        "concurrency": concurrency,
        "num_cores": len(cores),
        "separate_cores": len(cores) > 1,
        **results,
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


async def _measure(
    config: OpenAIOracleConfig, path: Path, num_requests: int, concurrency: int
) -> dict[str, float]:
    """One pass over all requests: new ones are called, known ones come from the cache."""
    requests = (
        ChatRequest(
            messages=chat(("system", "Answer."), ("user", f"{index}: {_PROMPT}")),
            model=MODEL,
            max_tokens=300,
            purpose="gold",
            record=str(index),
        )
        for index in range(num_requests)
    )
    async with Oracle(config, path) as oracle:
        if not len(oracle.cache):  # connections and imports are paid once, not per request
            warm_up = ChatRequest(chat(("user", "warm up")), MODEL, max_tokens=1)
            await oracle.complete(warm_up)
        start, cpu_start = time.perf_counter(), time.process_time()
        done = 0
        async for request, result in stream(oracle, requests, concurrency):
            if not result.ok:
                raise RuntimeError(f"{request.where}: {result.status}: {result.detail}")
            done += 1
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        if done != num_requests or len(oracle.cache) != num_requests + 1:
            raise RuntimeError(f"{num_requests} asked, {done} done, {len(oracle.cache)} kept")
    return {"requests_per_s": round(done / seconds, 1), "cpu_us": round(cpu / done * 1e6, 1)}


def _config(url: str, concurrency: int, max_cost: float | None) -> OpenAIOracleConfig:
    return OpenAIOracleConfig(
        model=MODEL,
        base_url=url,
        api_key_env=None,
        limits=LimitsConfig(max_concurrency=concurrency),
        cost=CostConfig(
            prices={MODEL: PriceConfig(input_per_million=0.15, output_per_million=0.6)},
            max_cost=max_cost,
        ),
    )


@contextmanager
def _one_core(core: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _server(core: int) -> Iterator[str]:
    """The instant server in a process of its own; yields its base_url."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", "--core", str(core)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the instant server did not start")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


class _Instant(asyncio.Protocol):
    """Answers each POST at once with the same completion."""

    _BODY = json.dumps(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _ANSWER},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 600, "completion_tokens": 300, "total_tokens": 900},
        }
    ).encode()
    _HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            assert isinstance(self._transport, asyncio.Transport)
            self._transport.write(self._HEAD % len(self._BODY) + self._BODY)


async def _serve(core: int) -> None:
    os.sched_setaffinity(0, {core})
    server = await asyncio.get_running_loop().create_server(_Instant, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(_serve(arguments.core))
        return
    result = run_benchmark(arguments.requests, arguments.concurrency)
    print(f"Oracle client, one core, {result['num_requests']} requests, {concurrency_text(result)}")
    for name, text in (
        ("plain", "called, kept on disk"),
        ("capped", "called, kept on disk, money reserved before each call"),
        ("plain_cached", "answered from the cache"),
    ):
        rate, cpu = result[f"{name}_requests_per_s"], result[f"{name}_cpu_us"]
        print(f"  {rate:10,.0f} requests/s  {cpu:7,.0f} us of CPU each   {text}")
    print(json.dumps(result))


def concurrency_text(result: dict[str, Any]) -> str:
    """How many at a time, and whether the server had a core of its own."""
    where = "server on another core" if result["separate_cores"] else "server on the SAME core"
    return f"{result['concurrency']} at a time, {where}"


if __name__ == "__main__":
    main()
