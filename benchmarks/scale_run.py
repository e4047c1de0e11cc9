"""Runs `run_iteration` as a run does, on simulated engines, and says what it took.

Setting -> Ray, hosts of simulated engines, dialogue workers -> run_iteration -> Played
"""

import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from stargate.actors.rpc.clients import EnginePool, ScorerPool, TrainerGroup, WeightPusher
from stargate.actors.rpc.remote import remote
from stargate.actors.rpc.score_calls import GatheredScore
from stargate.actors.runtime.dialogue_worker import WorkerPool, WorkerSpec, WorkerStats
from stargate.algorithm.base import build_algorithm
from stargate.algorithm.scoring import GoldScoring
from stargate.benchmarks.card import Say
from stargate.benchmarks.scale_engines import (
    CURVES,
    EngineHandle,
    HostStats,
    SimulatedEngines,
    SimulatedScorer,
    SimulatedTrainer,
    TextSource,
    make_texts,
)
from stargate.config.run import DataConfig, RunConfig
from stargate.data.dataset import load_dataset
from stargate.errors import DataError
from stargate.monitoring.progress import PlainProgress
from stargate.records.counters import Counters
from stargate.records.store import RunStore, table_files
from stargate.resources.machine import GIB
from stargate.resources.models import resolve_model
from stargate.rollout.roleplayer import build_roleplayer
from stargate.run_context import Roles, RunContext
from stargate.text.chat import ChatFormat, load_chat_format
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
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
_SAMPLE_SECONDS = 0.25
_PROMPTS = "paper"
_SCOPE = "t0"


@dataclass(frozen=True)
class Setting:
    """One run of the simulation."""

    num_engine_pairs: int
    num_dialogues: int
    curve: str
    num_workers: int
    num_hosts: int
    max_new_tokens: int

    @property
    def config(self) -> RunConfig:
        places = 2 * self.num_engine_pairs * CURVES[self.curve].max_num_seqs
        engine = {"num_engines": self.num_engine_pairs, "max_model_len": _MAX_MODEL_LEN}
        sampling = {"max_new_tokens": self.max_new_tokens}
        return RunConfig.model_validate(
            {
                "rollout": {
                    "num_dialogues": _DIALOGUES_PER_PAIR,
                    "max_concurrent_dialogues": int(places * _MORE_THAN_PLACES),
                    "num_workers": self.num_workers,
                },
                "questioner": {"engine": engine, "sampling": {**sampling, "temperature": 0.9}},
                "roleplayer": {"engine": engine, "sampling": sampling},
                "response": {"sampling": {"max_new_tokens": _RESPONSE_TOKENS}},
                "trainer": {"max_length": _MAX_MODEL_LEN},
            }
        )


@dataclass(frozen=True)
class Played:
    """What one run of the simulation took. `seconds` are those of the rollouts."""

    setting: Setting
    num_dialogues: int
    num_turns: int
    seconds: float
    iteration_seconds: float
    driver_rss_gb: float
    worker_rss_gb: float
    ray_calls_per_turn: float
    rows_per_file: float
    engine_busy_share: float
    mean_running: float
    cpu_seconds: dict[str, float]

    @property
    def turns_per_s(self) -> float:
        return self.num_turns / self.seconds


@dataclass
class _Cluster:
    """The actors of one setting."""

    hosts: list[Any] = field(default_factory=list)
    workers: list[Any] = field(default_factory=list)
    scorer: Any = None
    trainer: Any = None
    questioners: list[EngineHandle] = field(default_factory=list)
    roleplayers: list[EngineHandle] = field(default_factory=list)

    def all(self) -> list[Any]:
        return [*self.workers, *self.hosts, self.scorer, self.trainer]


@dataclass(frozen=True)
class _Materials:
    """What all settings share."""

    model_dir: Path
    chat: ChatFormat
    views: Views
    texts: TextSource
    pairs: list[Pair]


class _CountingStore(RunStore):
    """A run directory that notes how many rows its part files got."""

    rows_per_file = 0.0

    def compact(self, scope: str) -> None:
        num_files = len(table_files(self.root / scope / "dialogues"))
        self.rows_per_file = self.num_rows(scope, "dialogues") / max(num_files, 1)
        super().compact(scope)


def play_settings(settings: Sequence[Setting], say: Say) -> list[Played]:
    """Plays one setting after the other on one Ray cluster."""
    import ray

    from stargate.actors.runtime.spawn import start_ray

    materials = _prepare(settings)
    start_ray(num_gpus=0)
    try:
        played = []
        for setting in settings:
            found = asyncio.run(_play(setting, materials))
            say(
                f"simulated: {setting.num_engine_pairs} engine pairs ({setting.curve}), "
                f"{found.num_dialogues} dialogues: {found.turns_per_s:,.1f} turns/s, "
                f"{found.ray_calls_per_turn:.2f} Ray calls per turn, "
                f"engines busy {found.engine_busy_share:.0%}"
            )
            played.append(found)
        return played
    finally:
        ray.shutdown()


def _prepare(settings: Sequence[Setting]) -> _Materials:
    from transformers import AutoTokenizer

    model_dir = resolve_model("embedded")
    starter = load_dataset(DataConfig()).pairs("A")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    limits = [*(setting.max_new_tokens for setting in settings), _RESPONSE_TOKENS]
    texts = make_texts(tokenizer, "\n".join(pair.gold or "" for pair in starter), limits)
    most = max(setting.num_dialogues for setting in settings)
    return _Materials(
        model_dir=model_dir,
        chat=load_chat_format(str(model_dir)),
        views=Views(load_prompts(_PROMPTS)),
        texts=texts,
        pairs=make_pairs(starter, -(-most // _DIALOGUES_PER_PAIR)),
    )


def make_pairs(starter: Sequence[Pair], count: int) -> list[Pair]:
    """As many pairs as wanted: the starter set's, again and again under new ids."""
    pairs = []
    for number in range(count):
        lap, place = divmod(number, len(starter))
        pair = starter[place]
        task = replace(pair.task, id=f"{pair.task.id}-{lap}")
        pairs.append(replace(pair, task=task))
    return pairs


async def _play(setting: Setting, materials: _Materials) -> Played:
    pairs = materials.pairs[: -(-setting.num_dialogues // _DIALOGUES_PER_PAIR)]
    counters = Counters()
    async with _cluster(setting, materials) as cluster:
        with tempfile.TemporaryDirectory(prefix="stargate-scale-") as folder, _peak_rss() as peak:
            store = _CountingStore(Path(folder))
            roles, context = _open(setting, materials, cluster, store, counters)
            gc.freeze()  # as launch/setup.py does
            before = await _cpu_seconds(cluster)
            started = time.perf_counter()
            await run_iteration(0, pairs, roles, context)
            iteration_seconds = time.perf_counter() - started
            after = await _cpu_seconds(cluster)
            num_turns = _check(store, pairs, counters)
        workers, hosts = await _stats(cluster)
        num_scorer_calls, _ = await remote(cluster.scorer.stats.remote())
    busy = [seconds for host in hosts for seconds in host.busy_seconds]
    running = [mean for host in hosts for mean in host.mean_running]
    num_calls = sum(host.num_calls for host in hosts) + num_scorer_calls
    if isinstance(roles.play, WorkerPool):
        num_calls += roles.play.num_calls
    seconds = counters.stage_seconds["rollout"]
    return Played(
        setting=setting,
        num_dialogues=counters.dialogues[_SCOPE],
        num_turns=num_turns,
        seconds=seconds,
        iteration_seconds=iteration_seconds,
        driver_rss_gb=peak[0] / GIB,
        worker_rss_gb=max((stats.rss_bytes for stats in workers), default=0) / GIB,
        ray_calls_per_turn=num_calls / num_turns,
        rows_per_file=store.rows_per_file,
        engine_busy_share=sum(busy) / (len(busy) * iteration_seconds),
        mean_running=sum(running) / len(running),
        cpu_seconds={name: after[name] - before.get(name, 0.0) for name in after},
    )


@asynccontextmanager
async def _cluster(setting: Setting, materials: _Materials) -> AsyncIterator[_Cluster]:
    import ray

    from stargate.actors.runtime.spawn import ActorGroup, actor_class, spawn_worker

    one_thread = {"OMP_NUM_THREADS": "1"}
    cluster = _Cluster()
    count = 2 * setting.num_engine_pairs
    sizes = [len(range(n, count, setting.num_hosts)) for n in range(setting.num_hosts)]
    try:
        hosts = actor_class(SimulatedEngines, 0, one_thread)
        curve = CURVES[setting.curve]
        cluster.hosts = [hosts.remote(curve, materials.texts, size) for size in sizes if size]
        handles = [
            EngineHandle(cluster.hosts[n % len(sizes)], n // len(sizes)) for n in range(count)
        ]
        cluster.questioners = handles[: setting.num_engine_pairs]
        cluster.roleplayers = handles[setting.num_engine_pairs :]
        speed = _SCORER_TOKENS_PER_S * setting.num_engine_pairs
        cluster.scorer = actor_class(SimulatedScorer, 0, one_thread).remote(speed)
        cluster.trainer = actor_class(SimulatedTrainer, 0, one_thread).remote()
        actor_group = ActorGroup(questioners=cluster.questioners, roleplayers=cluster.roleplayers)
        spec = _worker_spec(setting.config, materials)
        cluster.workers = [spawn_worker(spec, n, actor_group) for n in range(setting.num_workers)]
        await asyncio.gather(*(remote(actor.start.remote()) for actor in cluster.all()))
        yield cluster
    finally:
        for actor in filter(None, cluster.all()):
            ray.kill(actor)


def _worker_spec(config: RunConfig, materials: _Materials) -> WorkerSpec:
    prompts = load_prompts(_PROMPTS).model_dump()
    model_dir = str(materials.model_dir)
    return WorkerSpec(config, model_dir, model_dir, None, prompts, prompts)


def _open(
    setting: Setting, materials: _Materials, cluster: _Cluster, store: RunStore, counters: Counters
) -> tuple[Roles, RunContext]:
    """The loop's parts, put together as launch/setup.py does for a run."""
    config = setting.config
    voice = EnginePool(cluster.roleplayers)
    progress = PlainProgress(sys.stderr)
    roles = Roles(
        generate=EnginePool(cluster.questioners),
        roleplay=build_roleplayer(
            config.roleplayer, voice, materials.chat, materials.views, match=None
        ),
        score=GatheredScore(ScorerPool([cluster.scorer])),
        train=TrainerGroup([cluster.trainer], store.root, store.root / "models", False, progress),
        push=WeightPusher(cluster.questioners),
        voice=voice,
        play=WorkerPool(cluster.workers) if cluster.workers else None,
    )
    context = RunContext(
        config=config,
        views=materials.views,
        chat=materials.chat,
        scoring=GoldScoring(materials.views, materials.chat, _MAX_MODEL_LEN),
        algorithm=build_algorithm(config, materials.views, materials.chat),
        store=store,
        counters=counters,
        progress=progress,
        overlap=True,
    )
    return roles, context


def _check(store: RunStore, pairs: Sequence[Pair], counters: Counters) -> int:
    """Every record must be there, exactly once. Returns the number of turns."""
    import pyarrow.parquet as pq

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


async def _stats(cluster: _Cluster) -> tuple[list[WorkerStats], list[HostStats]]:
    workers = [remote(worker.stats.remote()) for worker in cluster.workers]
    hosts = [remote(host.stats.remote()) for host in cluster.hosts]
    return list(await asyncio.gather(*workers)), list(await asyncio.gather(*hosts))


async def _cpu_seconds(cluster: _Cluster) -> dict[str, float]:
    """CPU seconds so far, by kind of process. Ray's own are those of its daemons."""
    workers, hosts = await _stats(cluster)
    _, scorer = await remote(cluster.scorer.stats.remote())
    return {
        "driver": time.process_time(),
        "dialogue_workers": sum(stats.cpu_seconds for stats in workers),
        "simulated_engines": sum(stats.cpu_seconds for stats in hosts),
        "simulated_scorer": scorer,
        "ray_daemons": sum(_daemon_seconds()),
    }


def _daemon_seconds() -> Iterator[float]:
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name() in ("raylet", "gcs_server"):
                times = process.cpu_times()
                yield times.user + times.system
        except psutil.NoSuchProcess:
            continue


@contextmanager
def _peak_rss() -> Iterator[list[int]]:
    """The most memory (bytes) that this process, the driver, held meanwhile."""
    process = psutil.Process(os.getpid())
    peak = [process.memory_info().rss]

    async def watch() -> None:
        while True:
            peak[0] = max(peak[0], process.memory_info().rss)
            await asyncio.sleep(_SAMPLE_SECONDS)

    task = asyncio.get_running_loop().create_task(watch())
    try:
        yield peak
    finally:
        task.cancel()
