"""An engine of its own, without Ray, and what is asked of it: for the tests of engines."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec
from stargate.actors.engines.startup import child_processes
from stargate.config.run import EngineConfig
from stargate.types import GenerateRequest, Generation, Sampling

CONFIG = EngineConfig(max_model_len=512, cpu_kv_cache_gb=0.5)
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=24, seed=0)

Result = TypeVar("Result")
Run = Callable[[Awaitable[Result]], Result]


class Started:
    """An engine with what a test wants to know of it."""

    def __init__(self, run: Run[Any], model_dir: Path, log: Path, **settings: Any) -> None:
        self.failures: list[str] = []
        self.before = child_processes()
        self.log = log
        spec = EngineSpec(
            "questioner", str(model_dir), CONFIG, cpu_cores="0", log_file=str(log), **settings
        )
        self.engine = Engine(spec, on_fatal=self.failures.append)
        self.info = run(self.engine.start())
        self.processes = child_processes() - self.before

    def process(self, name: str) -> psutil.Process:
        return next(p for p in self.processes if name in " ".join(p.cmdline()))


def started(run: Run[Any], model_dir: Path, log: Path, **settings: Any) -> Iterator[Started]:
    one = Started(run, model_dir, log, **settings)
    try:
        yield one
    finally:
        run(one.engine.shutdown())
    assert not any(process.is_running() for process in one.processes)


def request(ids: tuple[int, ...], sampling: Sampling = GREEDY, name: str = "r") -> GenerateRequest:
    return GenerateRequest(request_id=name, session=name, prompt_ids=ids, sampling=sampling)


async def all_texts(engine: Started, requests: list[GenerateRequest]) -> list[Generation]:
    return await asyncio.gather(*map(engine.engine.generate, requests))


def sampled(seed: int, max_new_tokens: int = 16) -> Sampling:
    return Sampling(temperature=0.9, top_p=0.9, max_new_tokens=max_new_tokens, seed=seed)
