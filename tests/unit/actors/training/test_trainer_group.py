"""The driver's side of training: where ranks keep checkpoints, and what the screen shows."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.actors.runtime import clients as pool_module
from stargate.actors.runtime.clients import TrainerGroup
from stargate.actors.runtime.file_transfer import SameFiles
from stargate.actors.training.rank import TrainProgress
from stargate.monitoring.progress import PlainProgress
from stargate.records.counters import Counters
from stargate.records.history import _result, iteration_event
from stargate.types import IterationResult, PushResult, TrainResult
from tests.fakes.actor_slots import ActorGroup


class Apart(SameFiles):
    """Files of the driver, of which one rank's node sees none."""

    async def shares(self, folder: Path, actor: str) -> bool:
        return actor != "trainer-1"


def keeping_trainer(
    actor_group: ActorGroup, monkeypatch: pytest.MonkeyPatch, run_dir: Path, file_access: SameFiles
) -> TrainerGroup:
    monkeypatch.setattr(pool_module, "ray", SimpleNamespace(put=lambda value: value))
    monkeypatch.setattr(pool_module, "_POLL_SECONDS", 0.001)
    actor_group.supervisor.file_access = file_access
    return TrainerGroup(
        actor_group.actors,
        base_model_dir=Path("base"),
        run_dir=run_dir,
        continue_training=False,
        progress=PlainProgress(),
        supervisor=actor_group.supervisor,
    )


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_new_ranks_are_told_where_the_checkpoints_are(
    has_checkpoint: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "t2" / "training"
    if has_checkpoint:
        (folder / "step-40").mkdir(parents=True)
    actor_group = ActorGroup(role="trainer", count=2, together=True)
    for actor in actor_group.actors:
        actor.dies_in = "train"
    asyncio.run(keeping_trainer(actor_group, monkeypatch, tmp_path, SameFiles())([], 3))
    calls = [call for actor in actor_group.actors for call in actor.calls if call[0] == "train"]
    assert calls == [("train", [], "base", f"{tmp_path}/models/m3", 3, str(folder))] * 2
    # With a checkpoint the ranks say from which step they go on.
    assert ("training m3 begins again" in capsys.readouterr().out) is not has_checkpoint


def test_ranks_that_do_not_share_the_folder_keep_no_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    actor_group = ActorGroup(role="trainer", count=2, together=True)
    asyncio.run(keeping_trainer(actor_group, monkeypatch, tmp_path, Apart())([], 1))
    assert actor_group.actors[0].calls[-2] == (
        "train",
        [],
        "base",
        f"{tmp_path}/models/m1",
        1,
        None,
    )
    said = capsys.readouterr().out
    assert "no checkpoints while m1 is trained: the node of trainer-1 does not share" in said


def test_the_screen_shows_where_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What rank 0 notes is said once, and steps of an earlier attempt are not shown as done now."""
    actor_group = ActorGroup(role="trainer", count=1)
    note = "training goes on from step 40 of 72"
    states = [
        TrainProgress(number=0),
        TrainProgress(number=1),
        TrainProgress(1, 40, 72, 0, first_step=40, notes=(note,)),
        TrainProgress(1, 50, 72, 100, 1.5, first_step=40, notes=(note,)),
        TrainProgress(1, 72, 72, 400, 1.25, first_step=40, notes=(note,)),
        TrainProgress(1, 72, 72, 400, 1.25, first_step=40, notes=(note, "at the end")),
    ]
    looks: list[TrainProgress] = []

    async def progress() -> TrainProgress:
        looks.append(states[0] if len(states) == 1 else states.pop(0))
        return looks[-1]

    async def train(*arguments: Any) -> None:
        while len(looks) < 5:  # one before training, then until all steps were seen to be done
            await asyncio.sleep(0.001)

    actor_group.actors[0].do_progress = progress  # type: ignore[method-assign]
    actor_group.actors[0].do_train = train
    asyncio.run(keeping_trainer(actor_group, monkeypatch, tmp_path, SameFiles())([], 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [note, "train: 32 steps"]
    assert lines.count(note) == lines.count("at the end") == 1
    [ended] = [line for line in lines if line.startswith("train: done")]
    assert "32/32 steps" in ended


def test_repeated_steps_and_gaps_are_on_record_and_runs_of_earlier_versions_have_none() -> None:
    trained = TrainResult(
        (2.0,), (1.0,), (0.1,), None, 1, 2, 3, 1.0, "models/m1", 0, 5, (0.1,), (0.2,)
    )
    event = iteration_event(0, IterationResult(trained, PushResult(1, 1, 1.0, {})), Counters())
    again = _result(event, Path("models"))
    assert again is not None and again.trained == trained
    for key in ("num_repeated_steps", "engine_gap_mean", "engine_gap_max"):
        del event[key]
    older = _result(event, Path("models"))
    assert older is not None and older.trained.num_repeated_steps is None
    assert older.trained.engine_gap_mean == older.trained.engine_gap_max == ()
