"""Runs `run_iteration` as a run does, on simulated engines, and says what it took.

Setting -> Ray, a host of simulated engines, dialogue workers -> run_iteration -> Played
"""

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import ray

from stargate.actors.rpc.remote import remote
from stargate.actors.runtime.actor_slots import WORKER, HeldWeights
from stargate.actors.runtime.clients import GuardedWorkers
from stargate.actors.runtime.spawn import ActorGroup, actor_class, spawn_worker, start_ray
from stargate.actors.runtime.supervisor import Supervisor
from stargate.benchmarks.processes import seconds_of
from stargate.benchmarks.results import Say
from stargate.benchmarks.scale_engines import (
    CURVES,
    EngineHandle,
    SimulatedEngines,
    SimulatedScorer,
    SimulatedTrainer,
    make_texts,
)
from stargate.config.run import RunConfig
from stargate.errors import DataError
from stargate.launch.setup import Prepared, prepare
from stargate.launch.system import RunningSystem, worker_spec
from stargate.monitoring.progress import PlainProgress
from stargate.records.counters import Counters
from stargate.records.store import RunStore, table_files
from stargate.resources.machine import GIB
from stargate.training_loop import run_iteration
from stargate.types import Pair

# N of the paper; K is uniform over 1, 2, 3, as there.
_DIALOGUES_PER_PAIR = 10
# Dialogues under way, as a multiple of the places in all engines: a few more than there are places
# keep every place taken while others travel.
_MORE_THAN_PLACES = 1.25
_RESPONSE_TOKENS = 128
_MAX_MODEL_LEN = 8192
# Tokens/s of the simulated scorers of one engine pair: enough that rollouts never wait for them.
_SCORER_TOKENS_PER_S = 100_000.0
_SCOPE = "t0"


@dataclass(frozen=True)
class Setting:
    """One run of the simulation."""

    num_engine_pairs: int
    num_dialogues: int
    curve: str
    num_workers: int
    max_new_tokens: int

    @property
    def config(self) -> RunConfig:
        places = 2 * self.num_engine_pairs * CURVES[self.curve].max_num_seqs
        engine = {"num_engines": self.num_engine_pairs, "max_model_len": _MAX_MODEL_LEN}
        sampling = {"max_new_tokens": self.max_new_tokens}
        return RunConfig.model_validate(
            {
                "device": "cpu",  # whatever the machine has
                "rollout": {
                    "num_dialogues": _DIALOGUES_PER_PAIR,
                    "max_concurrent_dialogues": int(places * _MORE_THAN_PLACES),
                    "num_workers": self.num_workers,
                },
                "questioner": {"engine": engine, "sampling": {**sampling, "temperature": 0.9}},
                "roleplayer": {"engine": engine, "sampling": sampling},
                "response": {"sampling": {"max_new_tokens": _RESPONSE_TOKENS}},
                "trainer": {"max_length": _MAX_MODEL_LEN},
                "schedule": {"overlap": "always"},  # as with a machine for each engine
            }
        )


@dataclass(frozen=True)
class Played:
    """What one run of the simulation took. `seconds` are those of the rollouts.

    `driver_rss_gb`: the most that the driver has held up to its end, runs before it included.
    """

    setting: Setting
    dialogues: int
    turns: int
    seconds: float
    iteration_seconds: float
    ray_calls_per_turn: float
    rows_per_file: float
    engine_busy_share: float
    mean_requests_running: float
    driver_rss_gb: float
    worker_rss_gb: float
    cpu_seconds: dict[str, float]

    @property
    def turns_per_s(self) -> float:
        return self.turns / self.seconds


class _CountingStore(RunStore):
    """A run directory that notes how many rows its part files got."""

    rows_per_file = 0.0

    def compact(self, scope: str) -> None:
        num_files = len(table_files(self.root / scope / "dialogues"))
        self.rows_per_file = self.num_rows(scope, "dialogues") / max(num_files, 1)
        super().compact(scope)


def play_settings(settings: Sequence[Setting], say: Say) -> list[Played]:
    """Plays one setting after the other on one Ray cluster."""
    simulation = _Simulation(settings, say)
    start_ray(num_gpus=0)
    try:
        played = []
        for setting in settings:
            found = asyncio.run(simulation.play(setting))
            say(
                f"simulated: {setting.num_engine_pairs} engine pairs ({setting.curve}), "
                f"{found.dialogues} dialogues: {found.turns_per_s:,.1f} turns/s, "
                f"{found.ray_calls_per_turn:.2f} Ray calls per turn, "
                f"engines busy {found.engine_busy_share:.0%}"
            )
            played.append(found)
        return played
    finally:
        ray.shutdown()


class _Simulation:
    """Plays settings, each with a config of its own: model, texts and pairs are the same."""

    def __init__(self, settings: Sequence[Setting], say: Say) -> None:
        from transformers import AutoTokenizer

        # With one pair of engines: more have no place here, and take none.
        config = replace(settings[0], num_engine_pairs=1).config
        self._prepared = prepare(config, say, training=False)
        self._progress = PlainProgress(sys.stderr)
        starter = self._prepared.dataset.pairs("A")
        tokenizer = AutoTokenizer.from_pretrained(self._prepared.base_model_dir)
        limits = [*(setting.max_new_tokens for setting in settings), _RESPONSE_TOKENS]
        self._texts = make_texts(tokenizer, "\n".join(pair.gold or "" for pair in starter), limits)
        most = max(setting.num_dialogues for setting in settings)
        self._pairs = make_pairs(starter, -(-most // _DIALOGUES_PER_PAIR))

    async def play(self, setting: Setting) -> Played:
        pairs = self._pairs[: -(-setting.num_dialogues // _DIALOGUES_PER_PAIR)]
        prepared, counters = replace(self._prepared, config=setting.config), Counters()
        async with self._actors(prepared, setting) as (group, host, pids):
            with tempfile.TemporaryDirectory(prefix="stargate-scale-") as folder:
                store = _CountingStore(Path(folder))
                running = RunningSystem(prepared, group, None, self._progress)
                roles, context = running.open(setting.config, store, counters)
                before = _cpu_seconds(pids)
                started = time.perf_counter()
                await run_iteration(0, pairs, roles, context)
                iteration_seconds = time.perf_counter() - started
                after = _cpu_seconds(pids)
                turns = _check(store, pairs, counters)
            loads = await remote(host.loads.remote())
            counting = (host, *group.places["scorer"])
            num_calls = sum([await remote(actor.num_calls.remote()) for actor in counting])
            stats = [await remote(worker.stats.remote()) for worker in group.places[WORKER]]
        busy, requests = zip(*loads, strict=True)
        num_calls += roles.play.num_calls if isinstance(roles.play, GuardedWorkers) else 0
        return Played(
            setting=setting,
            dialogues=counters.dialogues[_SCOPE],
            turns=turns,
            seconds=counters.stage_seconds["rollout"],
            iteration_seconds=iteration_seconds,
            ray_calls_per_turn=num_calls / turns,
            rows_per_file=store.rows_per_file,
            engine_busy_share=sum(busy) / (len(busy) * iteration_seconds),
            mean_requests_running=sum(requests) / len(requests),
            driver_rss_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
            worker_rss_gb=max((one.rss_bytes for one in stats), default=0) / GIB,
            cpu_seconds={name: after[name] - before[name] for name in after},
        )

    @asynccontextmanager
    async def _actors(
        self, prepared: Prepared, setting: Setting
    ) -> AsyncIterator[tuple[ActorGroup, Any, Mapping[str, Sequence[int]]]]:
        """The actors of one setting, the host of its engines, and all process ids by kind."""

        def spawn(cls: type, *arguments: Any) -> Any:
            return actor_class(cls, 0, {"OMP_NUM_THREADS": "1"}).remote(*arguments)

        num_pairs, curve = setting.num_engine_pairs, CURVES[setting.curve]
        actors: dict[str, list[Any]] = {}
        try:
            host = spawn(SimulatedEngines, curve, self._texts, 2 * num_pairs)
            actors["simulated_engines"] = [host]
            actors["simulated_scorer"] = [spawn(SimulatedScorer, _SCORER_TOKENS_PER_S * num_pairs)]
            actors["simulated_trainer"] = [spawn(SimulatedTrainer)]
            handles = [EngineHandle(host, number) for number in range(2 * num_pairs)]
            places = {
                "questioner": handles[:num_pairs],
                "roleplayer": handles[num_pairs:],
                "scorer": actors["simulated_scorer"],
                "trainer": actors["simulated_trainer"],
            }
            # It looks after nobody: what dies here ends the benchmark.
            held = HeldWeights(str(prepared.base_model_dir))
            supervisor = Supervisor([], held, 0, ray.kill, self._progress.say)
            spec = worker_spec(prepared)
            actors["dialogue_workers"] = places[WORKER] = [
                spawn_worker(spec, n, places) for n in range(setting.num_workers)
            ]
            pids = {
                kind: await asyncio.gather(*(remote(actor.start.remote()) for actor in of_kind))
                for kind, of_kind in actors.items()
            }
            yield ActorGroup(places, supervisor), host, pids
        finally:
            for actor in chain.from_iterable(actors.values()):
                ray.kill(actor)


def make_pairs(starter: Sequence[Pair], count: int) -> list[Pair]:
    """As many pairs as wanted: the starter set's, again and again under new ids."""
    pairs = []
    for number in range(count):
        lap, place = divmod(number, len(starter))
        pair = starter[place]
        task = replace(pair.task, id=f"{pair.task.id}-{lap}")
        pairs.append(replace(pair, task=task))
    return pairs


def _check(store: RunStore, pairs: Sequence[Pair], counters: Counters) -> int:
    """Every record must be there, exactly once. Returns the number of turns."""
    [file] = table_files(store.root / _SCOPE / "dialogues")
    columns = pq.read_table(file, columns=["id", "num_turns"])
    expected = len(pairs) * _DIALOGUES_PER_PAIR
    counts = {
        "dialogues": len(set(columns["id"].to_pylist())) / expected,
        "scores": store.num_rows(_SCOPE, "scores") / expected,
        "selections": store.num_rows(_SCOPE, "selections") / len(pairs),
        "examples": store.num_rows(_SCOPE, "examples") / len(pairs),
    }
    if counters.dropped or set(counts.values()) != {1.0}:
        raise DataError(f"records are missing: {counts}, dropped: {dict(counters.dropped)}")
    return sum(columns["num_turns"].to_pylist())


def _cpu_seconds(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """CPU seconds so far, by kind of process. Ray's own are those of its daemons."""
    found = {"driver": time.process_time()}
    for kind in ("dialogue_workers", "simulated_engines", "simulated_scorer"):
        found[kind] = sum(seconds_of(psutil.Process(pid)) for pid in pids[kind])
    children = psutil.Process().children(recursive=True)
    found["ray_daemons"] = sum(seconds_of(one, "raylet", "gcs_server") for one in children)
    return found
