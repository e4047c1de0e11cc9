"""`stargate resume` with fakes: what is done is not done again, wherever the run was killed."""

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate import store as store_module
from stargate.config import RunConfig
from stargate.errors import DataError, ModelError
from stargate.evaluation.playing import EvaluationPairs
from stargate.iteration import Roles, Workbench
from stargate.launch import crew as crew_module
from stargate.launch import session as session_module
from stargate.launch.resume import resume
from stargate.launch.session import fill_run_dir, sit
from stargate.lock import hold
from stargate.memory import MemoryPeak
from stargate.past import is_done, read_history
from stargate.progress import PlainProgress
from stargate.store import RunStore
from stargate.tally import Tally
from stargate.types import (
    GenerateRequest,
    Generation,
    Pair,
    PushResult,
    ScoreRequest,
    ScoreResult,
    TrainingExample,
    TrainResult,
)
from tests.unit.fakes import FixedRoleplay, ScriptedGenerate, ScriptedScore, make_pair
from tests.unit.test_iteration import favour_second, say, workbench

pytestmark = pytest.mark.integration

TRAIN_PAIRS = [make_pair(task="t1", persona=p) for p in ("p", "q")]
TEST_PAIRS = [make_pair(task="t3", persona=p) for p in ("p", "q")]
SCOPES = ("t0", "t1", "eval-m0", "eval-m1", "eval-m2")
EVENTS = [
    ("evaluation", 0),
    ("iteration", 0),
    ("evaluation", 1),
    ("iteration", 1),
    ("evaluation", 2),
]


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
    """What a session takes from launch.crew.Prepared."""

    config: RunConfig
    base_model_dir: Path
    dataset: Any = field(default_factory=lambda: SimpleNamespace(drop_counts={}))
    test_pairs: EvaluationPairs = field(default_factory=lambda: EvaluationPairs(TEST_PAIRS))

    def train_pairs(self, iteration: int) -> list[Pair]:
        return TRAIN_PAIRS


@dataclass(frozen=True)
class FakeWorkshop:
    prepared: FakePrepared
    world: World

    def open(self, config: RunConfig, store: RunStore, tally: Tally) -> tuple[Roles, Workbench]:
        world = self.world
        world.started_from.append(self.prepared.base_model_dir.name)
        bench = workbench(store.root, overlap=True)
        roles = Roles(
            generate=_Generate(world),
            roleplay=FixedRoleplay(),
            score=_Score(world),
            train=_Train(world),
            push=_Push(world),
        )
        return roles, replace(bench, config=config, store=store, tally=tally)


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


class _Train:
    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, examples: Sequence[TrainingExample], version: int) -> TrainResult:
        self._world.step(f"train m{version}")
        folder = _model_folder(self._world.root / "models" / f"m{version}")
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


def _model_folder(folder: Path) -> Path:
    """A folder that passes for a model: one float16 number."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"\0\0"
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text('{"model_type": "fake"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def config(root: Path, **changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "runs_dir": str(root.parent),
            "rollout": {"num_dialogues": 2, "turns": [1]},
            "questioner": {"sampling": {"max_new_tokens": 20}},
            "response": {"sampling": {"max_new_tokens": 20}},
            "evaluation": {"num_dialogues": 1, "num_turns": 1, "show_dialogues": 0},
            "schedule": {"num_iterations": 2},
            "tracking": {"tensorboard": False},
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_GATHER_SECONDS", 0.0)
    monkeypatch.setattr(session_module, "PeakMemory", _NoMemory)
    # eval.json needs a bootstrap, which is slow and not what is tested.
    monkeypatch.setattr(session_module.Evaluator, "write", lambda self, store: {})


def play(world: World, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """The first sitting of a new run, or the next one of a run that is there."""
    base = _model_folder(world.root.parent / "base")

    @asynccontextmanager
    async def workshop(prepared: FakePrepared, *_: object) -> AsyncIterator[FakeWorkshop]:
        yield FakeWorkshop(prepared, world)

    monkeypatch.setattr(session_module, "workshop", workshop)
    monkeypatch.setattr(
        crew_module, "prepare", lambda config, say, training=True: FakePrepared(config, base)
    )
    try:
        if world.root.exists():
            assert resume(world.root) == 0
        else:
            store = fill_run_dir(world.root, config(world.root, **changes))
            prepared: Any = FakePrepared(config(world.root, **changes), base)
            assert sit(prepared, store, PlainProgress()) == 0
    except Killed:
        shutil.rmtree(world.root)
        _killed(world.root).rename(world.root)


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An undisturbed run."""
    world = World(tmp_path_factory.mktemp("whole") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_GATHER_SECONDS", 0.0)
        patch.setattr(session_module, "PeakMemory", _NoMemory)
        patch.setattr(session_module.Evaluator, "write", lambda self, store: {})
        play(world, patch)
    assert events(world.root) == EVENTS
    return world


def test_a_run_killed_at_any_call_ends_as_if_undisturbed(
    whole: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = records(whole.root)
    places = {n for n, call in enumerate(whole.calls, start=1) if call.startswith(("tr", "pu"))}
    assert len(places) == 6
    for kill_at in sorted(places | set(range(1, len(whole.calls), 9))):
        first = World(tmp_path / f"{kill_at}" / "run", kill_at)
        play(first, monkeypatch)
        assert not (first.root / "summary.json").exists()
        there = {row["id"] for s in SCOPES for row in RunStore(first.root).read(s, "dialogues")}
        second = World(first.root)
        play(second, monkeypatch)
        assert records(first.root) == expected, kill_at
        assert events(first.root) == EVENTS, kill_at
        again = {call.split()[1].rpartition("/")[0] for call in second.calls if "question" in call}
        assert not again & there, kill_at
        summary = summary_of(first.root)
        assert (summary["status"], summary["sittings"]) == ("finished", 2)
        assert summary["rollout"]["num_dialogues"] == 8
        assert summary["rollout"]["generated_tokens"] == 8 * len("q0?<")
        assert summary["train"]["num_examples"] == 4
        assert summary["push"]["version"] == 2
        assert set(summary["eval"]) == {"m0", "m1", "m2"}


def test_what_is_done_is_not_called_again(
    whole: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at = whole.calls.index("push m1") + 1  # m1 is saved, its event is not written
    world = World(tmp_path / "run", kill_at)
    play(world, monkeypatch)
    second = World(world.root)
    play(second, monkeypatch)
    assert second.calls[0] == "push m1"
    assert "train m1" not in second.calls and "train m2" in second.calls
    assert sorted(world.calls[:-1] + second.calls) == sorted(whole.calls)
    event = RunStore(world.root).read_metrics()[1]
    assert (event["train_losses"], event["num_tokens"]) == ([2.0, 1.0], 9)


def test_a_training_without_a_record_is_repeated(
    whole: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the folder was renamed and before its ranks could say what they did."""
    world = World(tmp_path / "run", whole.calls.index("trained m1") + 1)
    play(world, monkeypatch)
    assert (world.root / "models" / "m1").is_dir()
    second = World(world.root)
    play(second, monkeypatch)
    assert second.calls[:2] == ["train m1", "trained m1"]


def test_a_finished_run_is_left_alone(
    whole: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole.root, root)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    world = World(root)
    play(world, monkeypatch)
    assert world.calls == []
    assert "has finished; there is nothing to do" in capsys.readouterr().out
    after = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    del after[root / ".lock"]
    assert after == before


@pytest.mark.parametrize(
    "name", ["t0/dialogues", "t1/scores", "eval-m0/controls", "eval-m1/dialogues"]
)
def test_damaged_tables_of_a_finished_run_are_made_again(
    name: str,
    whole: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole.root, root)
    file = root / f"{name}.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    world = World(root)
    play(world, monkeypatch)
    assert records(root) == records(whole.root)
    assert events(root) == EVENTS
    assert not [call for call in world.calls if call.startswith("train")]
    assert f"damaged: {name}.parquet: its checksum does not match" in capsys.readouterr().out
    assert summary_of(root)["damaged_files"] == [f"{name}.parquet.damaged-1"]
    third = World(root)
    play(third, monkeypatch)
    assert third.calls == []


def test_continued_training_starts_from_the_last_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "run", kill_at=0)
    whole_calls = World(tmp_path / "all")
    play(whole_calls, monkeypatch, trainer={"start_from": "previous"})
    world = World(tmp_path / "run", whole_calls.calls.index("train m2") + 1)
    play(world, monkeypatch, trainer={"start_from": "previous"})
    second = World(world.root)
    play(second, monkeypatch)
    assert (world.started_from, second.started_from) == (["base"], ["m1"])


def test_drops_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in order while a scope was under way: its drops come again with the next sitting."""
    whole = World(tmp_path / "whole", silent="t0/t1:p/1")
    play(whole, monkeypatch)
    assert summary_of(whole.root)["dropped"] == {"empty_question": 1}
    world = World(tmp_path / "run", silent=whole.silent)
    monkeypatch.setattr(_Train, "__call__", _fails)
    with pytest.raises(DataError, match="the disk is full"):
        play(world, monkeypatch)
    assert summary_of(world.root)["status"] == "stopped: DataError: the disk is full"
    assert summary_of(world.root)["dropped"] == {"empty_question": 1}
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "PeakMemory", _NoMemory)
        patch.setattr(session_module.Evaluator, "write", lambda self, store: {})
        play(World(world.root, silent=whole.silent), patch)
    summary = summary_of(world.root)
    assert (summary["dropped"], summary["sittings"]) == ({"empty_question": 1}, 2)
    assert summary["seconds"] > 0 and summary["stages"]["rollout"]["seconds"] > 0


async def _fails(self: _Train, examples: Sequence[TrainingExample], version: int) -> TrainResult:
    raise DataError("the disk is full")


def test_models_that_later_parts_need_must_be_there(whole: World, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole.root, root)
    store = RunStore(root)
    (root / "models" / "m2" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"m2: config\.json is missing"):
        read_history(store)  # eval-m2 was played with it
    shutil.rmtree(root / "eval-m2")
    assert not is_done(store, 1, known=True)  # nothing was made with it: train it again
    shutil.rmtree(root / "models" / "m1")
    with pytest.raises(ModelError, match=r"m1: is missing, but later parts"):
        read_history(store)


def test_other_folders_and_busy_runs_are_refused(whole: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory"):
        resume(tmp_path)
    with hold(whole.root), pytest.raises(DataError, match="another process works on it"):
        resume(whole.root)
    shutil.copy(whole.root / "config.yaml", tmp_path)
    with pytest.raises(DataError, match="no folder models"):
        resume(tmp_path)
    (tmp_path / "ablation.json").write_text("{}")
    with pytest.raises(DataError, match="stargate ablate --resume"):
        resume(tmp_path)
