"""`stargate resume` with fakes: what is done is not done again, wherever the run was killed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from stargate.errors import DataError, ModelError
from stargate.launch.resume import resume
from stargate.records.files import hold
from stargate.records.history import is_done, read_history
from stargate.records.store import RunStore
from stargate.types import TrainingExample, TrainResult
from tests.integration.resume_world import (
    EVENTS,
    SCOPES,
    Train,
    World,
    events,
    play,
    records,
    summary_of,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An undisturbed run."""
    world = play(World(tmp_path_factory.mktemp("whole") / "run"))
    assert events(world.root) == EVENTS
    return world


def killed_at(call: str, whole: World, root: Path) -> World:
    """A run that was killed at this call."""
    return play(World(root, whole.calls.index(call) + 1))


def copy_of(whole: World, root: Path) -> Path:
    return Path(shutil.copytree(whole.root, root))


def contents(root: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_a_run_killed_at_any_call_ends_as_if_undisturbed(whole: World, tmp_path: Path) -> None:
    expected = records(whole.root)
    places = {n for n, call in enumerate(whole.calls, start=1) if call.startswith(("tr", "pu"))}
    assert len(places) == 6
    for kill_at in sorted(places | set(range(1, len(whole.calls), 9))):
        first = play(World(tmp_path / f"{kill_at}" / "run", kill_at))
        assert not (first.root / "summary.json").exists()
        there = {row["id"] for s in SCOPES for row in RunStore(first.root).read(s, "dialogues")}
        second = play(World(first.root))
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


def test_what_is_done_is_not_called_again(whole: World, tmp_path: Path) -> None:
    # m1 is saved, its event is not written
    world = killed_at("push m1", whole, tmp_path / "run")
    second = play(World(world.root))
    assert second.calls[0] == "push m1"
    assert "train m1" not in second.calls and "train m2" in second.calls
    assert sorted(world.calls[:-1] + second.calls) == sorted(whole.calls)
    event = RunStore(world.root).read_metrics()[1]
    assert (event["train_losses"], event["num_tokens"]) == ([2.0, 1.0], 9)


def test_a_training_without_a_record_is_repeated(whole: World, tmp_path: Path) -> None:
    """Killed after the folder was renamed and before its ranks could say what they did."""
    world = killed_at("trained m1", whole, tmp_path / "run")
    assert (world.root / "models" / "m1").is_dir()
    second = play(World(world.root))
    assert second.calls[:2] == ["train m1", "trained m1"]


@pytest.mark.parametrize("call", ["train m1", "push m1"])
def test_checkpoints_go_once_their_training_is_on_record(
    call: str, whole: World, tmp_path: Path
) -> None:
    """Also those that a kill between the record and their removal has left."""
    world = killed_at(call, whole, tmp_path / "run")
    folder = world.root / "t0" / "training"
    (folder / "step-2").mkdir(parents=True)
    (folder / "step-4.damaged-1").mkdir()
    play(World(world.root))
    assert summary_of(world.root)["status"] == "finished"
    assert not folder.exists()
    assert records(world.root) == records(whole.root)


def test_a_finished_run_is_left_alone(
    whole: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copy_of(whole, tmp_path / "run")
    before = contents(root)
    assert play(World(root)).calls == []
    assert "has finished; there is nothing to do" in capsys.readouterr().out
    after = contents(root)
    del after[root / ".lock"]
    assert after == before


@pytest.mark.parametrize(
    "name", ["t0/dialogues", "t1/scores", "eval-m0/controls", "eval-m1/dialogues"]
)
def test_damaged_tables_of_a_finished_run_are_made_again(
    name: str,
    whole: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copy_of(whole, tmp_path / "run")
    file = root / f"{name}.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    world = play(World(root))
    assert records(root) == records(whole.root)
    assert events(root) == EVENTS
    assert not [call for call in world.calls if call.startswith("train")]
    assert f"damaged: {name}.parquet: its checksum does not match" in capsys.readouterr().out
    assert summary_of(root)["damaged_files"] == [f"{name}.parquet.damaged-1"]
    assert play(World(root)).calls == []


def test_continued_training_starts_from_the_last_model(tmp_path: Path) -> None:
    previous = {"start_from": "previous"}
    whole = play(World(tmp_path / "all"), algorithm=previous)
    kill_at = whole.calls.index("train m2") + 1
    world = play(World(tmp_path / "run", kill_at), algorithm=previous)
    second = play(World(world.root))
    assert (world.started_from, second.started_from) == (["base"], ["m1"])


def test_drops_are_counted_once(tmp_path: Path) -> None:
    """Stopped in order while a scope was under way: its drops come again with the next sitting."""
    whole = play(World(tmp_path / "whole", silent="t0/t1:p/1"))
    assert summary_of(whole.root)["dropped"] == {"empty_question": 1}
    world = World(tmp_path / "run", silent=whole.silent)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="disk is full"):
        patch.setattr(Train, "__call__", _fails)
        play(world)
    assert summary_of(world.root)["status"] == "stopped: DataError: the disk is full"
    assert summary_of(world.root)["dropped"] == {"empty_question": 1}
    play(World(world.root, silent=whole.silent))
    summary = summary_of(world.root)
    assert (summary["dropped"], summary["sittings"]) == ({"empty_question": 1}, 2)
    assert summary["seconds"] > 0 and summary["stages"]["rollout"]["seconds"] > 0


async def _fails(self: Train, examples: Sequence[TrainingExample], version: int) -> TrainResult:
    raise DataError("the disk is full")


def test_models_that_later_parts_need_must_be_there(whole: World, tmp_path: Path) -> None:
    root = copy_of(whole, tmp_path / "run")
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


def test_a_training_that_does_not_help_held_out_pairs_stops_and_resumes_alike(
    tmp_path: Path,
) -> None:
    """Fakes score all golds alike, so the contrast of every checkpoint is 0."""
    schedule = {"num_iterations": 2, "validation": {"min_distinct": 0.0}}
    whole = play(World(tmp_path / "whole" / "run"), schedule=schedule)
    stopped = [("evaluation", 0), ("validation", 0), *EVENTS[1:3], ("validation", 1)]
    assert events(whole.root) == stopped
    found = RunStore(whole.root).read_metrics()[-1]
    assert (found["contrast"], found["best"]) == (0.0, 0)
    assert found["stop"] == "its contrast is not above m0's 0.00 nats"
    assert summary_of(whole.root)["status"] == "finished"
    assert not (whole.root / "models" / "m2").exists()
    played = {row["pair_id"] for row in validated(whole.root).read("eval-m1", "dialogues")}
    assert played == {"t2:p", "t2:q", "t2:r"}
    of_m1 = [n for n, call in enumerate(whole.calls, start=1) if "eval-m1/t2" in call]
    for kill_at in (of_m1[0], of_m1[-1]):
        first = play(World(tmp_path / f"{kill_at}" / "run", kill_at), schedule=schedule)
        play(World(first.root))
        assert events(first.root) == stopped
        for scope in ("eval-m0", "eval-m1"):
            [one, other] = (
                validated(root).read(scope, "controls") for root in (whole.root, first.root)
            )
            assert sorted(map(str, one)) == sorted(map(str, other))


def validated(root: Path) -> RunStore:
    return RunStore(root / "evaluations" / "validation")
