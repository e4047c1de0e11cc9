"""Many dialogues in a process of their own, beside the engines.

    driver: GuardedWorkers -- plans -->  DialogueWorker: turn loop, views, prompts, roleplayer,
            (clients.py)   <- finished       |           matcher
                              dialogues      v  callers to the engines that are its home
                                      Questioner and Roleplayer engines

A turn then costs the driver nothing; a dialogue costs it a row on disk. What the worker writes to
the engines is what the driver would have written: ids, prompts and seeds come from the plan alone.
"""

import asyncio
import gc
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stargate.actors.rpc.batched_calls import BatchedServer, CallBatch, Delivery
from stargate.actors.rpc.replica_pool import EnginePool, share_of
from stargate.config.run import EngineRoleplayerConfig, RunConfig
from stargate.errors import EngineError
from stargate.protocols import Play
from stargate.rollout.deadline import TurnWatch
from stargate.rollout.dialogue import play
from stargate.rollout.grounding import EmbeddingMatcher, open_matcher
from stargate.rollout.questioner import Questioner
from stargate.rollout.roleplayer import EngineCall, build_roleplayer
from stargate.rollout.slow_start import SlowStart
from stargate.text.formats import load_chat_formats
from stargate.text.prompts import PromptSet
from stargate.text.views import Views
from stargate.types import Dialogue, DialoguePlan


@dataclass(frozen=True)
class WorkerSpec:
    """What every dialogue worker of a run knows. Prompt sets as plain values: they travel."""

    config: RunConfig
    base_model_dir: str
    roleplayer_dir: str
    embedder_dir: str | None
    prompts: Mapping[str, Any]
    roleplayer_prompts: Mapping[str, Any]


@dataclass(frozen=True)
class WorkerStats:
    """What a worker did since it started."""

    num_requests: int = 0
    num_calls: int = 0  # Ray calls to engines
    num_repeated_turns: int = 0
    cpu_seconds: float = 0.0
    rss_bytes: int = 0


class DialogueWorker:
    """Plays the dialogues that it is sent. A plain class; spawn.py makes it an actor.

    `number` of `config.rollout.num_workers`: which engines are its home.
    """

    def __init__(
        self, spec: WorkerSpec, number: int, questioners: Sequence[Any], roleplayers: Sequence[Any]
    ) -> None:
        self._spec, self._number = spec, number
        by_role = {"questioner": questioners, "roleplayer": roleplayers}
        self._staff = {role: _Staff(engines) for role, engines in by_role.items()}
        # The same as a dead worker's before this one: engines then end what that had asked for.
        owner = f"dialogue-worker-{number}"
        self._pools = {
            role: EnginePool(engines, self._share(engines), self._staff[role].successor, owner)
            for role, engines in by_role.items()
        }
        self._watch = TurnWatch(spec.config.rollout.turn_timeout_s)
        self._matcher: EmbeddingMatcher | None = None
        self._player: Play | None = None
        self._server = BatchedServer(self._play)

    async def start(self) -> int:
        """Loads tokenizers and prompts. Returns this process's id."""
        spec, config = self._spec, self._spec.config
        chat, voice_chat = load_chat_formats(config, spec.base_model_dir, spec.roleplayer_dir)
        questioner = Questioner(
            self._pools["questioner"],
            _views(spec.prompts),
            chat,
            config.questioner.sampling,
            config.questioner.engine.max_model_len,
        )
        embedder = None if spec.embedder_dir is None else Path(spec.embedder_dir)
        self._matcher = open_matcher(config.roleplayer.grounding, embedder)
        roleplayer = config.roleplayer
        # An API is the driver's to ask.
        assert isinstance(roleplayer, EngineRoleplayerConfig) and voice_chat is not None
        call = EngineCall(self._pools["roleplayer"], voice_chat, roleplayer)
        views = _views(spec.roleplayer_prompts)
        roleplay = build_roleplayer(roleplayer, call, views, self._matcher, config.seed)
        self._player = partial(
            play,
            questioner=questioner,
            roleplay=roleplay,
            watch=self._watch,
            # This worker's share of the dialogues that begin at once; at least one of them.
            start=SlowStart(-(-config.num_first_dialogues // config.rollout.num_workers)),
        )
        gc.freeze()  # what is loaded stays: a collection need not look at it again and again
        return os.getpid()

    async def exchange(self, batch: CallBatch[DialoguePlan]) -> Delivery[Dialogue]:
        """Takes plans; returns finished dialogues, or why one was dropped. See batched_calls.py."""
        return await self._server.exchange(batch)

    async def meet(self, role: str, engines: Sequence[Any]) -> None:
        """Takes note of all engines of a role as they stand now: some may have been replaced, have
        joined, or are to be left. Returns when those that are left owe nothing to this worker.
        """
        pool = self._pools[role]
        leaving = [pool.leave() for _ in range(pool.num_replicas - len(engines))]
        self._staff[role].meet(engines)
        for engine in engines[pool.num_replicas :]:
            pool.join(engine)
        pool.home = self._share(engines)
        await asyncio.gather(*leaving)

    async def stats(self) -> WorkerStats:
        """What was done so far."""
        import psutil

        pools = self._pools.values()
        return WorkerStats(
            num_requests=sum(pool.num_requests for pool in pools),
            num_calls=sum(pool.num_calls for pool in pools),
            num_repeated_turns=self._watch.num_repeated,
            cpu_seconds=time.process_time(),
            rss_bytes=psutil.Process().memory_info().rss,
        )

    async def shutdown(self) -> None:
        """Ends the matcher's thread."""
        if self._matcher is not None:
            self._matcher.close()
            self._matcher = None

    def _share(self, engines: Sequence[Any]) -> list[int]:
        return share_of(self._number, self._spec.config.rollout.num_workers, len(engines))

    async def _play(self, plan: DialoguePlan) -> Dialogue:
        if self._player is None:
            raise EngineError("dialogue worker: it was not started")
        return await self._player(plan)


class _Staff:
    """Who stands where, of the engines of one role. Only the driver replaces, adds and removes."""

    def __init__(self, engines: Sequence[Any]) -> None:
        self._present = list(engines)
        self._in_use = list(engines)
        self._changed = asyncio.Event()

    def meet(self, engines: Sequence[Any]) -> None:
        self._in_use = self._in_use[: len(engines)] + list(engines[len(self._in_use) :])
        self._present = list(engines)
        self._changed.set()

    async def successor(self, number: int, error: EngineError) -> Any:
        """The engine after the one in use, which died; waits until the driver names it.

        Raises EngineError when its place is given up.
        """
        while number < len(self._present) and self._present[number] == self._in_use[number]:
            self._changed.clear()
            await self._changed.wait()
        if number >= len(self._present):
            raise EngineError(f"engine {number} has left: {error}")
        self._in_use[number] = self._present[number]
        return self._in_use[number]


def _views(prompts: Mapping[str, Any]) -> Views:
    return Views(PromptSet.model_validate(prompts))
