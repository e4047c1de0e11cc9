"""PushWeights: one saved folder into every Questioner engine, then their versions compared."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.supervisor import Supervisor
from stargate.errors import EngineError
from stargate.types import PushResult


class WeightPusher:
    """Pushes a saved model folder into every Questioner engine."""

    def __init__(self, engines: Sequence[Any], supervisor: Supervisor) -> None:
        self._engines = engines
        self._supervisor = supervisor

    async def __call__(self, model_dir: str, version: int) -> PushResult:
        """Loads the weights everywhere; an engine that dies of it is replaced and tried once more.

        Raises EngineError unless every engine reports `version`.
        """
        started = time.perf_counter()
        holding: dict[int, Any] = {}  # by place: the engine that took the weights
        phases: list[dict[str, float]] = []

        async def push_into(number: int) -> None:
            holding[number], took = await self._push_into(number, model_dir, version)
            phases.append(took)

        with self._supervisor.weights.pushing(model_dir, version):
            # One that had taken them may be replaced while others still load theirs.
            while missing := [n for n, e in enumerate(self._engines) if holding.get(n) is not e]:
                await asyncio.gather(*(push_into(number) for number in missing))
        slowest = {name: max(phase.get(name, 0.0) for phase in phases) for name in phases[0]}
        return PushResult(
            version=version,
            num_engines=len(self._engines),
            seconds=time.perf_counter() - started,
            phases=slowest,
        )

    async def _push_into(
        self, number: int, model_dir: str, version: int
    ) -> tuple[Any, dict[str, float]]:
        """The engine at this place that took the weights, and its seconds by phase."""
        while True:
            engine = self._engines[number]
            try:
                # An engine that sees the saved folder reads that: it was just written, so it is
                # cached, and a copy into shared memory would take longer than the whole push.
                started = time.perf_counter()
                async with self._supervisor.file_access.bring(
                    model_dir, f"questioner-{number}"
                ) as folder:
                    brought = time.perf_counter() - started
                    took: dict[str, float] = await remote(
                        engine.load_weights.remote(folder, version)
                    )
                took = {"bring": brought, **took}
                reported = await remote(engine.reported_version.remote())
            except EngineError as error:
                if await self._supervisor.replace("questioner", number, error) is engine:
                    raise  # it lives: it was no death
                self._supervisor.counters.resent["push"] += 1
                continue
            if reported != version:
                raise EngineError(
                    f"weight push: sent version {version}, questioner-{number} reports {reported}"
                )
            return engine, took
