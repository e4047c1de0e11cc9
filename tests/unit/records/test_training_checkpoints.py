"""Checkpoints within a training: what makes one usable, and what ranks do when one is not."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.training.step_plan import Layout, plan_digest, plan_steps
from stargate.config.run import TrainerConfig
from stargate.errors import DataError
from stargate.records.training_checkpoints import (
    CheckpointFolder,
    Identity,
    Manifest,
    TrainingLog,
    examples_digest,
    has_checkpoint,
    model_digest,
    read_manifest,
    remove_training,
    settings_of,
    training_folder,
)
from stargate.types import TrainingExample

CONFIG = TrainerConfig(checkpoint_steps=2, checkpoint_seconds=None)
IDENTITY = Identity(1, 0, "deepspeed 0.19.8", "weighted_nll", settings_of(CONFIG), "e", "p", "m")
ALL_STEPS = 6


def log_of(step: int) -> TrainingLog:
    losses = [1.0 / (n + 3) for n in range(step)]  # digits that a shorter form would lose
    return TrainingLog(losses, list(losses), list(losses), 10 * step, 5 * step, 0.1 * step)


def manifest_of(step: int, **files: str) -> Manifest:
    return Manifest(IDENTITY, step, ALL_STEPS, log_of(step), files)


def write(folder: CheckpointFolder, step: int) -> None:
    folder.begin(step)
    folder.finish(manifest_of(step))


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "training")


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


def test_the_last_two_are_kept_and_those_of_another_training_go(folder: CheckpointFolder) -> None:
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


def test_what_a_killed_writer_left_goes_and_its_steps_are_counted(folder: CheckpointFolder) -> None:
    folder.open()
    folder.begin(3)
    (folder.partial(3) / "rank-0.master.safetensors").write_bytes(b"half")
    for number in (1, 2, 3):
        folder.count_step(number)
    assert not has_checkpoint(folder.folder)
    assert CheckpointFolder(folder.folder).open() == 3
    assert names(folder.folder) == ["steps"]


def test_a_manifest_comes_back_to_the_last_digit(folder: CheckpointFolder) -> None:
    manifest = manifest_of(3, **{"rank-0.master.safetensors": "0" * 64})
    folder.begin(3)
    folder.finish(manifest)
    assert read_manifest(folder.place(3)) == manifest


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other step", "name", "list"])
def test_a_torn_manifest_is_refused(folder: CheckpointFolder, damage: str) -> None:
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


def test_no_number_that_is_not_finite_is_written(folder: CheckpointFolder) -> None:
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
        ({"objective": "x"}, "another objective"),
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
    other = replace(example, weights=(0, 0, 1))
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
        "from stargate.actors.training.step_plan import plan_digest\n"
        "from stargate.actors.training.step_plan import Layout, plan_steps\n"
        "lengths = [7 + 5 * i % 31 for i in range(50)]\n"
        "print(plan_digest(plan_steps(range(50), lengths, Layout(8, 2, 2, 60), 3, seed=4)))\n"
    )

    def digest(hashing: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    lengths = [7 + 5 * i % 31 for i in range(50)]
    here, other = (
        plan_digest(plan_steps(range(50), lengths, Layout(8, 2, 2, 60), 3, seed=seed))
        for seed in (4, 5)
    )
    assert [digest("1"), digest("2")] == [here, here]
    assert other != here


def test_removing_is_idempotent(tmp_path: Path) -> None:
    folder = training_folder(tmp_path, 3)
    assert folder == tmp_path / "t2" / "training"
    remove_training(folder)
    write(CheckpointFolder(folder), 2)
    remove_training(folder)
    remove_training(folder)
    assert not folder.exists()
