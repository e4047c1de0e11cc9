"""Checkpoints within a training: what makes one usable, and what ranks do when one is not."""

import errno
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stargate.actors import checkpointing
from stargate.actors.checkpointing import Checkpoints, Training
from stargate.checkpoints import (
    CheckpointFolder,
    Identity,
    Manifest,
    TrainingLog,
    examples_digest,
    has_checkpoint,
    model_digest,
    plan_digest,
    read_manifest,
    remove_training,
    settings_of,
    training_folder,
)
from stargate.config import TrainerConfig
from stargate.errors import DataError, DivergenceError
from stargate.schedule import Layout, plan_steps
from stargate.types import TrainingExample

CONFIG = TrainerConfig(checkpoint_steps=2, checkpoint_seconds=None)
IDENTITY = Identity(1, 0, "deepspeed 0.19.8", settings_of(CONFIG), "e", "p", "m")
ALL_STEPS = 6


def log_of(step: int) -> TrainingLog:
    losses = [1.0 / (n + 3) for n in range(step)]  # digits that a shorter form would lose
    return TrainingLog(losses, list(losses), list(losses), 10 * step, 5 * step, 0.1 * step)


def manifest_of(step: int, **files: str) -> Manifest:
    return Manifest(IDENTITY, step, ALL_STEPS, log_of(step), files)


def write(folder: CheckpointFolder, step: int) -> None:
    folder.begin(step)
    folder.finish(manifest_of(step))


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


def test_the_last_two_are_kept_and_those_of_another_training_go(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "training")
    assert folder.open() == 0
    for step in (2, 4, 6, 8):
        write(folder, step)
    assert names(folder.folder) == ["step-6", "step-8"]
    assert folder.steps() == [8, 6]
    # What another training left is not counted among the two: its step 8 is no fallback for ours.
    after = CheckpointFolder(folder.folder)
    after.open()
    write(after, 2)
    assert names(folder.folder) == ["step-2"]


def test_what_a_killed_writer_left_goes_and_its_steps_are_counted(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "training")
    folder.open()
    folder.begin(3)
    (folder.partial(3) / "rank-0.master.safetensors").write_bytes(b"half")
    for number in (1, 2, 3):
        folder.count_step(number)
    assert not has_checkpoint(folder.folder)
    assert CheckpointFolder(folder.folder).open() == 3
    assert names(folder.folder) == ["steps"]


def test_a_manifest_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "training")
    manifest = manifest_of(3, **{"rank-0.master.safetensors": "0" * 64})
    folder.begin(3)
    folder.finish(manifest)
    assert read_manifest(folder.place(3)) == manifest


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other step", "name", "list"])
def test_a_torn_manifest_is_refused(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path / "training")
    files = {"../../escape.safetensors": "0" * 64} if damage == "name" else {}
    folder.begin(3)
    folder.finish(manifest_of(3, **files))
    place = folder.place(3)
    file = place / "manifest.json"
    text = file.read_text()
    if damage == "flip":
        file.write_text(text.replace('"num_tokens": 30', '"num_tokens": 31'))
    elif damage == "cut":
        file.write_text(text[: len(text) // 2])
    elif damage == "gone":
        file.unlink()
    elif damage == "other step":
        place = place.rename(folder.place(4))
    elif damage == "list":
        file.write_text("[]")
    with pytest.raises(DataError, match=r"manifest\.json: "):
        read_manifest(place)


def test_no_number_that_is_not_finite_is_written(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "training")
    folder.begin(1)
    log = replace(log_of(1), losses=[math.nan])
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.finish(Manifest(IDENTITY, 1, 2, log, {}))
    assert not has_checkpoint(folder.folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"num_ranks": 2}, "it was written by 1 rank(s), now there are 2"),
        ({"engine": "deepspeed 0.20.0"}, "by deepspeed 0.19.8, this is deepspeed 0.20.0"),
        ({"examples": "x"}, "other examples"),
        ({"plan": "x"}, "another order of the examples"),
        ({"model": "x"}, "another start model"),
        ({"seed": 1}, "another seed"),
        ({"config": settings_of(TrainerConfig(weight_decay=0.5))}, "another trainer.weight_decay"),
        # What does not change what is learned may differ.
        ({"config": settings_of(TrainerConfig(checkpoint_seconds=5, num_threads=3))}, None),
    ],
)
def test_another_training_is_known_by_its_identity(
    change: dict[str, Any], reason: str | None
) -> None:
    difference = IDENTITY.difference(replace(IDENTITY, **change))
    if reason is None:
        assert difference is None
    else:
        assert difference is not None and reason in difference


def test_digests_see_every_token_and_the_weights_but_not_the_tokenizer(tmp_path: Path) -> None:
    example = TrainingExample("p", "d", (1, 2, 3), (0, 1, 1), "")
    other = replace(example, loss_mask=(0, 0, 1))
    assert examples_digest([example]) != examples_digest([other])
    assert examples_digest([example, other]) != examples_digest([other, example])
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    before = model_digest(tmp_path)
    (tmp_path / "tokenizer.json").write_text("changed")
    assert model_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_text("changed")
    assert model_digest(tmp_path) != before


def test_the_order_of_the_examples_is_the_same_in_every_process() -> None:
    """It comes from the seed alone: not from the clock, nor from how Python hashes strings."""
    program = (
        "from stargate.checkpoints import plan_digest\n"
        "from stargate.schedule import Layout, plan_steps\n"
        "lengths = [7 + 5 * i % 31 for i in range(50)]\n"
        "print(plan_digest(plan_steps(range(50), lengths, Layout(8, 2, 2, 60), 3, seed={})))\n"
    )

    def digest(seed: int, hashing: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        command = [sys.executable, "-c", program.format(seed)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    lengths = [7 + 5 * i % 31 for i in range(50)]
    here = plan_digest(plan_steps(range(50), lengths, Layout(8, 2, 2, 60), 3, seed=4))
    assert [digest(4, "1"), digest(4, "2")] == [here, here]
    assert digest(5, "1") != here


def test_removing_is_idempotent(tmp_path: Path) -> None:
    folder = training_folder(tmp_path, 3)
    assert folder == tmp_path / "t2" / "training"
    remove_training(folder)
    write(CheckpointFolder(folder), 2)
    remove_training(folder)
    remove_training(folder)
    assert not folder.exists()


class FakeShards:
    """What a rank would hold: numbers that tell its rank and step. Ranks meet in `ring`."""

    def __init__(self, rank: int, ring: "Ring") -> None:
        self.rank, self.ring = rank, ring
        self.tensors = self.at(0)
        self.restored: dict[str, Tensor] | None = None

    def at(self, step: int) -> dict[str, Tensor]:
        value = float(10 * self.rank + step)
        return {
            "master.0": torch.full((3,), value),
            "exp_avg.0": torch.full((3,), value),
            "random.cpu": torch.tensor([self.rank, step], dtype=torch.uint8),
        }

    def state(self) -> dict[str, Tensor]:
        return self.tensors

    def is_own(self, name: str) -> bool:
        return True

    def misfit(self, tensors: Mapping[str, Tensor]) -> str | None:
        return None if tensors["master.0"].shape == (3,) else "it does not fit"

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.restored = dict(tensors)

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.ring.exchange(self.rank, message)


class Ring:
    """Ranks in threads: nobody goes on before all have spoken."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=20)
        self._told: list[Any] = [None] * size

    def exchange(self, rank: int, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._told[rank] = json.loads(json.dumps(message))
        self._barrier.wait()
        told = list(self._told)
        self._barrier.wait()
        return told


class Attempt:
    """One attempt at a training, on all its ranks."""

    def __init__(self, folder: Path | None, size: int = 1, identity: Identity = IDENTITY) -> None:
        ring = Ring(size)
        self.said: list[str] = []
        self.shards = [FakeShards(rank, ring) for rank in range(size)]
        identity = replace(identity, num_ranks=size)
        self.ranks = [
            Checkpoints(
                shards,
                Training("m_1", ALL_STEPS, shards.rank, CONFIG, lambda: identity),
                folder,
                self.said.append,
            )
            for shards in self.shards
        ]

    def on_all(self, act: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self.ranks)) as threads:
            calls = [threads.submit(act, rank) for rank in range(len(self.ranks))]
            return [call.result() for call in calls]

    def restore(self) -> list[TrainingLog]:
        return self.on_all(lambda rank: self.ranks[rank].restore())

    def step_to(self, last: int, first: int = 1) -> None:
        def run(rank: int) -> None:
            for step in range(first, last + 1):
                self.shards[rank].tensors = self.shards[rank].at(step)
                self.ranks[rank].after_step(log_of(step))

        self.on_all(run)


@pytest.mark.parametrize("size", [1, 2])
def test_all_ranks_go_on_where_the_last_checkpoint_was(tmp_path: Path, size: int) -> None:
    first = Attempt(tmp_path / "training", size)
    assert first.restore() == [TrainingLog()] * size
    first.step_to(5)
    assert first.said == []
    second = Attempt(tmp_path / "training", size)
    assert second.restore() == [log_of(4)] * size
    for rank, shards in enumerate(second.shards):
        assert shards.restored is not None
        assert shards.restored["master.0"].tolist() == [10.0 * rank + 4] * 3
        assert shards.restored["random.cpu"].tolist() == [rank, 4]
    assert second.said == ["training goes on from step 4 of 6"]
    assert second.ranks[0].num_repeated == 1  # step 5
    # Killed again after step 5, which is thus done three times.
    second.step_to(5, first=5)
    third = Attempt(tmp_path / "training", size)
    third.restore()
    assert third.ranks[0].num_repeated == 2


def test_nothing_is_written_after_the_last_step_or_without_a_folder(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "training")
    attempt.restore()
    attempt.step_to(ALL_STEPS)
    assert names(tmp_path / "training") == ["step-2", "step-4", "steps"]
    without = Attempt(None)
    assert without.restore() == [TrainingLog()]
    without.step_to(ALL_STEPS)
    assert without.ranks[0].num_repeated is None


@pytest.mark.parametrize("file", ["rank-0.master.safetensors", "rank-1.exp_avg.safetensors"])
def test_a_torn_file_of_any_rank_sends_all_to_the_one_before(tmp_path: Path, file: str) -> None:
    attempt = Attempt(tmp_path / "training", 2)
    attempt.restore()
    attempt.step_to(5)
    torn = tmp_path / "training" / "step-4" / file
    torn.write_bytes(torn.read_bytes()[:-1] + b"?")
    second = Attempt(tmp_path / "training", 2)
    assert second.restore() == [log_of(2)] * 2
    assert second.said[0].startswith("damaged checkpoint of step 4: ")
    assert f"{file}: its checksum does not match; set aside as step-4.damaged-1" in second.said[0]
    assert second.said[1:] == ["training goes on from step 2 of 6"]
    second.step_to(4, first=3)
    assert names(tmp_path / "training") == ["step-2", "step-4", "step-4.damaged-1", "steps"]


def test_with_both_torn_training_begins_anew_and_says_so(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "training")
    attempt.restore()
    attempt.step_to(5)
    (tmp_path / "training/step-4/manifest.json").unlink()
    (tmp_path / "training/step-2/rank-0.small.safetensors").unlink()
    second = Attempt(tmp_path / "training")
    assert second.restore() == [TrainingLog()]
    assert second.shards[0].restored is None
    assert [text.split(":")[0] for text in second.said] == [
        "damaged checkpoint of step 4",
        "damaged checkpoint of step 2",
        "training begins anew",
    ]


def test_a_checkpoint_of_another_training_is_not_used_and_the_screen_says_why(
    tmp_path: Path,
) -> None:
    attempt = Attempt(tmp_path / "training")
    attempt.restore()
    attempt.step_to(5)
    second = Attempt(tmp_path / "training", identity=replace(IDENTITY, examples="others"))
    assert second.restore() == [TrainingLog()]
    assert second.said == [
        "the checkpoint of step 4 is not used: it is of a training with other examples",
        "training begins anew: no other checkpoint is there",
    ]
    more = Attempt(tmp_path / "training", 2)
    more.restore()
    assert "it was written by 1 rank(s), now there are 2" in more.said[0]


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "training")
    attempt.restore()
    attempt.shards[0].at = lambda step: {"master.0": torch.zeros(4)}  # type: ignore[method-assign]
    attempt.step_to(2)
    second = Attempt(tmp_path / "training")
    assert second.restore() == [TrainingLog()]
    assert "it does not fit; set aside as step-2.damaged-1" in second.said[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stop_all_ranks_and_are_not_written(
    tmp_path: Path, bad: float
) -> None:
    attempt = Attempt(tmp_path / "training", 2)
    attempt.restore()
    attempt.step_to(3)
    tensors = attempt.shards[1].at(4)
    tensors["exp_avg.0"][1] = bad
    attempt.shards[1].tensors = tensors
    attempt.shards[0].tensors = attempt.shards[0].at(4)

    def stops(rank: int) -> str:
        with pytest.raises(DivergenceError) as caught:
            attempt.ranks[rank].after_step(log_of(4))
        return str(caught.value)

    expected = "training m_1, step 4 of 6: values of the optimizer's exp_avg are not finite; "
    assert attempt.on_all(stops) == [f"{expected}nothing was saved"] * 2
    assert names(tmp_path / "training") == ["step-2", "steps"]


def test_a_disk_that_fills_up_costs_the_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(tmp_path / "training", 2)
    attempt.restore()
    attempt.step_to(2)
    save_file = checkpointing.save_file

    def full(tensors: dict[str, Tensor], file: Path) -> None:
        if file.name == "rank-1.exp_avg.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "save_file", full)
        attempt.step_to(4, first=3)
    assert len(attempt.said) == 1
    assert attempt.said[0].startswith("no checkpoint of step 4: ")
    assert "No space left on device; training goes on without it" in attempt.said[0]
    # What it held is free again, and the one before is still there.
    assert names(tmp_path / "training") == ["step-2", "steps"]


def test_a_checkpoint_that_would_fill_the_disk_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=40, total=2**20)
    monkeypatch.setattr(checkpointing.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(checkpointing, "save_file", None)  # not even tried
    attempt = Attempt(tmp_path / "training", 2)
    attempt.restore()
    attempt.step_to(5)
    assert len(attempt.said) == 1  # once, though two were due
    assert "0 MiB are free" in attempt.said[0]
    assert names(tmp_path / "training") == ["steps"]


def test_a_folder_that_can_not_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "training").write_text("a file")
    attempt = Attempt(tmp_path / "training")
    assert attempt.restore() == [TrainingLog()]
    attempt.step_to(5)
    assert [text.partition(":")[0] for text in attempt.said] == [
        "no checkpoints of this training",
        "no checkpoint of step 2",
    ]
    assert attempt.ranks[0].num_repeated is None


def test_seconds_are_rank_0s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that looked at clocks of their own could disagree, and wait for each other for ever."""
    monkeypatch.setattr(
        "tests.unit.test_checkpoints.CONFIG", TrainerConfig(checkpoint_seconds=50.0)
    )
    attempt = Attempt(tmp_path / "training", 2)
    attempt.restore()
    for rank, one in enumerate(attempt.ranks):
        one._written = checkpointing.time.monotonic() - (40.0 if rank == 0 else 60.0)
    attempt.step_to(1)
    assert names(tmp_path / "training") == ["steps"]
    attempt.ranks[0]._written -= 20.0
    attempt.step_to(2, first=2)
    assert names(tmp_path / "training") == ["step-2", "steps"]
