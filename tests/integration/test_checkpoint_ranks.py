"""Checkpoints within a training: what ranks write, and what they do when one is not usable."""

import errno
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from stargate.actors.training import checkpoints as checkpointing
from stargate.actors.training.backend import Backend
from stargate.actors.training.checkpoints import Checkpoints, Training
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import TrainerConfig
from stargate.errors import DivergenceError
from stargate.records.training_checkpoints import (
    Identity,
    TrainingLog,
)
from tests.unit.records.test_training_checkpoints import ALL_STEPS, CONFIG, IDENTITY, log_of, names

pytestmark = pytest.mark.integration


class FakeBackend:
    """What a rank would hold: numbers that tell writer, rank and step. Ranks meet in `ring`."""

    def __init__(self, rank: int, ring: "Ring") -> None:
        self.rank, self.ring, self.step = rank, ring, 0
        shape = torch.Size([3])
        own = {f"{number}": shape for number in range(ring.size)}  # the writer's rank
        self.shapes = {"master": own, "exp_avg": own, "random": {"cpu": torch.Size([2])}}
        self.bad: dict[tuple[str, str], float] = {}
        self.restored: dict[tuple[str, str], list[float]] = {}

    def get(self, kind: str, name: str) -> Tensor:
        if kind == "random":
            return torch.tensor([self.rank, self.step], dtype=torch.uint8)
        tensor = torch.full((3,), float(10 * int(name) + self.step))
        tensor[1] = self.bad.get((kind, name), tensor[1])
        return tensor

    def set(self, kind: str, name: str, value: Tensor) -> None:
        self.restored[kind, name] = value.tolist()

    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.ring.exchange(self.rank, message)


class Ring:
    """Ranks in threads: nobody goes on before all have spoken."""

    def __init__(self, size: int) -> None:
        self.size = size
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
        self.backends = [FakeBackend(rank, ring) for rank in range(size)]
        identity = replace(identity, num_ranks=size)
        spec = TrainerSpec("base", CONFIG, world_size=size)
        self.ranks = [
            Checkpoints(
                cast(Backend, backend),
                Training("m_1", ALL_STEPS, replace(spec, rank=backend.rank), lambda: identity),
                folder,
                self.said.append,
            )
            for backend in self.backends
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
                self.backends[rank].step = step
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
    for rank, backend in enumerate(second.backends):
        for other in range(size):  # every rank has all masters, and its own generator
            assert backend.restored["master", f"{other}"] == [10.0 * other + 4] * 3
        assert backend.restored["random", "cpu"] == [rank, 4]
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
    (tmp_path / "training/step-2/rank-0.random.safetensors").unlink()
    second = Attempt(tmp_path / "training")
    assert second.restore() == [TrainingLog()]
    assert not second.backends[0].restored
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
    attempt.step_to(2)
    second = Attempt(tmp_path / "training")
    second.backends[0].shapes["master"] = {"0": torch.Size([4])}
    assert second.restore() == [TrainingLog()]
    assert "it has no master of 0 of shape (4,); set aside as step-2.damaged-1" in second.said[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stop_all_ranks_and_are_not_written(
    tmp_path: Path, bad: float
) -> None:
    attempt = Attempt(tmp_path / "training", 2)
    attempt.restore()
    attempt.step_to(3)
    for backend in attempt.backends:
        backend.step, backend.bad = 4, {("exp_avg", "1"): bad}

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
    monkeypatch.setattr(f"{__name__}.CONFIG", TrainerConfig(checkpoint_seconds=50.0))
    attempt = Attempt(tmp_path / "training", 2)
    attempt.restore()
    for rank, one in enumerate(attempt.ranks):
        one._written = checkpointing.time.monotonic() - (40.0 if rank == 0 else 60.0)
    attempt.step_to(1)
    assert names(tmp_path / "training") == ["steps"]
    attempt.ranks[0]._written -= 20.0
    attempt.step_to(2, first=2)
    assert names(tmp_path / "training") == ["step-2", "steps"]


def test_the_next_checkpoint_waits_ten_times_as_long_as_the_last_one_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.CONFIG", TrainerConfig(checkpoint_seconds=50.0))
    now = 1000.0
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now)
    attempt = Attempt(tmp_path / "training")
    attempt.restore()
    save_file = checkpointing.save_file

    def slow(tensors: dict[str, Tensor], file: Path) -> None:
        nonlocal now
        now += 3.0  # three kinds of files: 9 s a checkpoint
        save_file(tensors, file)

    monkeypatch.setattr(checkpointing, "save_file", slow)
    written = []
    for step in range(1, ALL_STEPS):
        now += 50.0
        attempt.step_to(step, first=step)
        written.append(f"step-{step}" in names(tmp_path / "training"))
    assert written == [True, False, True, False, True]
