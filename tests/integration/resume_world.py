"""A run of fakes that can be killed at any call of an actor: what test_resume_moments.py plays."""

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from stargate.config.run import RunConfig
from stargate.evaluation import statistics
from stargate.evaluation.evaluator import Evaluator
from stargate.evaluation.playing import EvaluationPairs
from stargate.launch import session as session_module
from stargate.launch import setup as setup_module
from stargate.launch.provenance import Inputs
from stargate.launch.resume import resume
from stargate.launch.session import fill_run_dir, sit
from stargate.monitoring import journal as journal_module
from stargate.monitoring.progress import PlainProgress
from stargate.records import store as store_module
from stargate.records.counters import Counters
from stargate.records.store import RunStore
from stargate.run_context import Roles, RunContext
from stargate.types import (
    GenerateRequest,
    Generation,
    MemoryPeak,
    Pair,
    PushResult,
    ScoreRequest,
    ScoreResult,
    TrainingExample,
    TrainResult,
)
from tests.fakes.model_files import write_model
from tests.fakes.scripted import FixedRoleplay, ScriptedGenerate, ScriptedScore, make_pair
from tests.unit.evaluation.test_ablation import config as small_config
from tests.unit.test_pair_steps import favour_second, run_context, say

TRAIN_PAIRS = [make_pair(task="t1", persona=p) for p in ("p", "q")]
TEST_PAIRS = [make_pair(task="t3", persona=p) for p in ("p", "q")]
HELD_OUT_PAIRS = [make_pair(task="t2", persona=p) for p in ("p", "q", "r")]
SCOPES = ("t0", "t1", "eval-m0", "eval-m1", "eval-m2")
EVENTS = [
    *(("evaluation", 0), ("iteration", 0)),
    *(("evaluation", 1), ("iteration", 1)),
    ("evaluation", 2),
]


WorldT = TypeVar("WorldT", bound="World")


class Killed(BaseException):
    """The process is gone: what was on disk at that moment is in ROOT.killed."""


@dataclass
class World:
    """Fakes of all actors. Call number `kill_at` of any of them is the end of the process."""

    root: Path
    kill_at: int | None = None
    silent: str = "no request"  # the Questioner says nothing to requests with this in their name
    calls: list[str] = field(default_factory=list)
    started_from: list[str] = field(default_factory=list)
    version: int = 0

    def step(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.kill_at:
            shutil.copytree(self.root, _killed(self.root))
            raise Killed(name)


def _killed(root: Path) -> Path:
    return root.with_name(f"{root.name}.killed")


@dataclass(frozen=True)
class FakePrepared:
    """What a session takes from launch.setup.Prepared."""

    config: RunConfig
    base_model_dir: Path
    inputs: Inputs = field(default_factory=dict)
    dataset: Any = field(default_factory=lambda: SimpleNamespace(drop_counts={}))
    test_pairs: EvaluationPairs = field(default_factory=lambda: EvaluationPairs(TEST_PAIRS))

    def train_pairs(self, iteration: int) -> list[Pair]:
        return TRAIN_PAIRS

    def validation_pairs(self) -> list[Pair]:
        return HELD_OUT_PAIRS if self.config.schedule.validation else []

    def evaluator(self, config: RunConfig, trained: RunConfig) -> Evaluator:
        nobody: Any = SimpleNamespace(count=len)  # no judge
        base = self.base_model_dir
        return Evaluator(config, trained, self.test_pairs, base, nobody, nobody, base)


@dataclass(frozen=True)
class FakeSystem:
    prepared: FakePrepared
    world: World
    scaler: None = None  # its engines stay as they are

    def open(
        self, config: RunConfig, store: RunStore, counters: Counters
    ) -> tuple[Roles, RunContext]:
        world = self.world
        world.started_from.append(self.prepared.base_model_dir.name)
        context = run_context(store.root, overlap=True)
        roles = Roles(
            generate=_Generate(world),
            roleplay=FixedRoleplay(),
            score=_Score(world),
            train=Train(world),
            push=_Push(world),
        )
        return roles, replace(context, config=config, store=store, counters=counters)


class _NoMemory:
    def __enter__(self) -> "_NoMemory":
        return self

    def __exit__(self, *_: object) -> None: ...

    def peak(self) -> MemoryPeak:
        return MemoryPeak(1.0, "pss", 1)


class _Generate(ScriptedGenerate):
    def __init__(self, world: World) -> None:
        super().__init__(lambda r: "" if world.silent in r.request_id else say(r))
        self._world = world

    async def __call__(self, request: GenerateRequest) -> Generation:
        self._world.step(f"generate {request.request_id} m{self._world.version}")
        generation = await super().__call__(request)
        return replace(generation, policy_version=self._world.version)


class _Score(ScriptedScore):
    def __init__(self, world: World) -> None:
        super().__init__(favour_second)
        self._world = world

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        for request in requests:
            self._world.step(f"score {request.key} {len(request.context_ids)}")
        return await super().__call__(requests)


class Train:
    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
        self._world.step(f"train m{version}")
        folder = write_model(self._world.root / "models" / f"m{version}")
        self._world.step(f"trained m{version}")
        return TrainResult((2.0, 1.0), (1.0, 1.0), (0.1, 0.1), None, 4, 9, 5, 1.0, str(folder))


class _Push:
    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, model_dir: str, version: int) -> PushResult:
        self._world.step(f"push m{version}")
        assert Path(model_dir).name == (f"m{version}" if version else "base")
        self._world.version = version
        return PushResult(version, 1, 0.1, {"load": 0.1})


def config(root: Path, **changes: object) -> RunConfig:
    changes = {"schedule": {"num_iterations": 2}, **changes}
    return small_config(runs_dir=str(root.parent), **changes)


def _without_waiting(patch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes long and is not what these tests look at."""
    patch.setattr(store_module, "_GATHER_SECONDS", 0.0)
    patch.setattr(journal_module, "PeakMemory", _NoMemory)
    patch.setattr(statistics, "clustered_interval", lambda table, config: None)


def play(world: WorldT, **changes: object) -> WorldT:
    """The first sitting of a new run, or the next one of a run that is there."""
    base = write_model(world.root.parent / "base")

    @asynccontextmanager
    async def running_system(prepared: FakePrepared, *_: object) -> AsyncIterator[FakeSystem]:
        yield FakeSystem(prepared, world)

    def prepare(config: RunConfig, say: object, training: bool = True) -> FakePrepared:
        return FakePrepared(config, base)

    with pytest.MonkeyPatch.context() as patch:
        _without_waiting(patch)
        patch.setattr(session_module, "running_system", running_system)
        patch.setattr(setup_module, "prepare", prepare)
        try:
            if world.root.exists():
                resume(world.root)
            else:
                store = fill_run_dir(world.root, settings := config(world.root, **changes))
                prepared: Any = FakePrepared(settings, base)
                sit(prepared, store, PlainProgress())
        except Killed:
            shutil.rmtree(world.root)
            _killed(world.root).rename(world.root)
    return world


def records(root: Path) -> dict[str, list[str]]:
    """All rows of all tables, without what differs between any two runs."""
    store = RunStore(root)
    return {
        f"{scope}/{table}": sorted(str({**row, "seconds": 0.0}) for row in store.read(scope, table))
        for scope in SCOPES
        for table in store_module.SCHEMAS
    }


def events(root: Path) -> list[tuple[str, int]]:
    found = RunStore(root).read_metrics()
    return [(event["event"], event.get("iteration", event.get("version"))) for event in found]


def summary_of(root: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((root / "summary.json").read_text())
    return values
