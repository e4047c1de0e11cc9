"""What our engine asks of vLLM: requests that are given up, and sleep. A fake in vLLM's place."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stargate.actors.engines import engine as engine_module
from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec, engine_arguments
from stargate.actors.rpc.batched_calls import BatchedCaller
from stargate.config.run import EngineConfig
from stargate.errors import EngineError
from stargate.types import GenerateRequest, Generation, Sampling


class FakeLlm:
    """AsyncLLM as far as an engine uses it. Writes down what it was asked; a text never ends."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fails_in: str | None = None

    async def _note(self, *call: Any) -> None:
        await asyncio.sleep(0)
        self.calls.append(call if len(call) > 1 else call[0])
        if call[0] == self.fails_in:
            raise RuntimeError("CUDA error: out of memory")

    async def generate(self, prompt: Any, parameters: Any, name: str) -> AsyncIterator[Any]:
        self.calls.append(("generate", name))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.calls.append(("abort", name))
            raise
        yield None

    async def sleep(self, level: int) -> None:
        await self._note("sleep", level)

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        await self._note("wake_up", tags)
        return tags != ["weights"]

    async def pause_generation(self, mode: str) -> None:
        await self._note("pause")

    async def start_weight_update(self) -> None:
        await self._note("start")

    async def update_weights(self, request: Any) -> None:
        await self._note("update")

    async def finish_weight_update(self, weight_version: str) -> None:
        await self._note("finish")
        self.version = weight_version

    async def reset_prefix_cache(self) -> bool:
        await self._note("reset")
        return True

    async def get_weight_version(self) -> str:
        return self.version

    async def resume_generation(self) -> None:
        await self._note("resume")


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLlm:
    async def final_output(self: Engine, llm: Any, request: Any, **settings: Any) -> Any:
        async for output in llm.generate(None, None, request.request_id):
            return output

    async def replace_weights(llm: Any, *arguments: Any) -> None:
        for step in (llm.pause_generation("keep"), llm.update_weights(None)):
            await step

    monkeypatch.setattr(Engine, "_final_output", final_output)  # vLLM's own types are not here
    monkeypatch.setattr(engine_module, "_replace_weights", replace_weights)
    monkeypatch.setattr(engine_module, "check_compatible", lambda *arguments: None)
    return FakeLlm()


def running(llm: FakeLlm) -> Engine:
    engine = Engine(EngineSpec("questioner", "m0", EngineConfig(), device="cuda", sleeps=True))
    engine._llm, engine._max_model_len = llm, 512
    return engine


def request(name: str) -> GenerateRequest:
    return GenerateRequest(name, name, (1, 2, 3), Sampling(0.0, 1.0, 8, 0))


async def test_a_request_that_is_given_up_is_aborted_in_the_engine(llm: FakeLlm) -> None:
    engine = running(llm)
    caller: BatchedCaller[GenerateRequest, Generation] = BatchedCaller(engine.exchange)
    asking = [asyncio.ensure_future(caller(request(name))) for name in "ab"]
    direct = asyncio.ensure_future(engine.generate(request("c")))
    late = asyncio.ensure_future(asyncio.wait_for(caller(request("d")), 0.05))
    await asyncio.sleep(0.02)
    asking[0].cancel()
    direct.cancel()
    with pytest.raises(TimeoutError):
        await late
    for _ in range(20):
        await asyncio.sleep(0)
    assert [call for call in llm.calls if call[0] == "abort"] == [
        *(("abort", "c"), ("abort", "a"), ("abort", "d"))
    ]
    assert engine._num_in_flight == 1  # b goes on
    assert (await engine.stats()).num_requests == 0
    asking[1].cancel()


async def test_an_engine_sleeps_and_wakes_once(llm: FakeLlm) -> None:
    engine = running(llm)
    await engine.sleep(1)
    await engine.sleep(2)  # sleeps on as it is
    with pytest.raises(EngineError, match="a: it is asleep"):
        await engine.generate(request("a"))
    assert await engine.wake_up()
    assert await engine.wake_up()
    assert llm.calls == [("sleep", 1), ("wake_up", None)]


def test_new_weights_wake_an_engine_and_only_they_wake_one_without_weights(llm: FakeLlm) -> None:
    async def run() -> dict[str, float]:
        engine = running(llm)
        await engine.sleep(2)
        assert not await engine.wake_up()
        phases = await engine.load_weights("m1", 1)
        assert await engine.wake_up()
        await engine.load_weights("m2", 2)  # awake: as ever
        return phases

    phases = asyncio.run(run())
    assert llm.calls == [
        ("sleep", 2),
        # Room for the weights first, for the cache when they are there, and only then requests.
        *(("wake_up", ["weights"]), "pause", "update", ("wake_up", ["kv_cache"]), "resume"),
        *("pause", "update", "resume"),
    ]
    assert {"wake", "wake_cache", "resume"} <= phases.keys()


@pytest.mark.parametrize("step", ["sleep", "wake_up"])
def test_an_engine_that_fails_at_it_must_be_replaced(llm: FakeLlm, step: str) -> None:
    async def run() -> Engine:
        engine = running(llm)
        llm.fails_in = step
        with pytest.raises(EngineError, match=r"RuntimeError: CUDA error: out of memory"):
            await engine.sleep(1)
            await engine.wake_up()
        return engine

    engine = asyncio.run(run())
    assert engine.fatal is not None and engine.fatal.startswith("questioner engine: ")


def test_sleep_mode_is_asked_for_on_a_shared_gpu_only() -> None:
    shared = EngineSpec("questioner", "m0", EngineConfig(), device="cuda", sleeps=True)
    assert engine_arguments(shared)["enable_sleep_mode"] is True
    own = EngineSpec("questioner", "m0", EngineConfig(), device="cuda")
    assert "enable_sleep_mode" not in engine_arguments(own)
