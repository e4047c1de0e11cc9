"""(torch) Checkpoints of a training stage as its ranks write and read them.

    restore: newest whole checkpoint of this very training -> every rank's tensors -> its log
    after_step: due? -> all finite? -> every rank its files -> rank 0: manifest, rename

Rank 0 decides and speaks, every rank handles the files that it wrote, and they tell each other what
came of it (`exchange`). Checkpoints are a convenience: without room for one, training goes
on. Only values that are not finite stop it, for then the weights are lost.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stargate.config.run import TrainerConfig
from stargate.errors import DataError, DivergenceError, one_line
from stargate.records.files import sync
from stargate.records.training_checkpoints import (
    CheckpointFolder,
    Identity,
    Manifest,
    TrainingLog,
    file_name,
    files_of,
    read_manifest,
)
from stargate.resources.embedded import file_sha256

_LOG = logging.getLogger(__name__)

# Kinds of tensors that get a file of their own: as large as the weights. On a GPU one kind at a
# time is copied to main memory.
_LARGE = ("master", "exp_avg", "exp_avg_sq")
_SMALL = "small"
# Characters of a problem that ranks tell each other.
_MAX_PROBLEM = 400


class Shards(Protocol):
    """What is needed of partitions.py: Partitions. All ranks call `exchange` at once."""

    def state(self) -> dict[str, Tensor]: ...
    def is_own(self, name: str) -> bool: ...
    def misfit(self, tensors: Mapping[str, Tensor]) -> str | None: ...
    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...
    def exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Training:
    """Which training it is, and who of its ranks we are. `identify` is only asked on rank 0."""

    name: str  # "m_1"
    num_steps: int
    rank: int
    config: TrainerConfig
    identify: Callable[[], Identity]


class Checkpoints:
    """The checkpoints of one training stage, on one rank. Without a folder there are none."""

    def __init__(
        self, shards: Shards, training: Training, folder: Path | None, say: Callable[[str], None]
    ) -> None:
        """`say` is called on rank 0 with what a person should know."""
        self._shards = shards
        self._training = training
        self._folder = None if folder is None else CheckpointFolder(folder)
        self._say_aloud = say
        self._identity: Identity | None = None
        self._written = time.monotonic()
        self._failing = False
        # Steps that were done before and had to be repeated; None: nobody counts.
        self.num_repeated: int | None = None

    def restore(self) -> TrainingLog:
        """Puts the stage where the newest usable checkpoint has it. Empty without one."""
        if self._folder is None:
            return TrainingLog()
        self._open(self._folder)
        refused: list[int] = []
        while True:
            step = self._from_first(lambda: self._choose(refused))
            if step is None:
                return TrainingLog()
            try:
                manifest, tensors = self._read(self._folder, step)
                problem = None
            except (DataError, OSError, SafetensorError) as error:
                problem = _short(error)
            problem = self._first_problem(problem)
            if problem is None:
                break
            refused.append(step)
            if self._training.rank == 0:
                self._put_aside(self._folder, step, problem)
        self._shards.restore(tensors)
        self._folder.use(step)
        self._written = time.monotonic()
        if self.num_repeated is not None:
            self.num_repeated = max(0, self.num_repeated - step)
        self._say(f"training goes on from step {step} of {manifest.num_steps}")
        return manifest.log

    def after_step(self, log: TrainingLog) -> None:
        """To be called after every step. Writes a checkpoint if one is due.

        Raises DivergenceError on all ranks if a weight or moment is not finite.
        """
        if self._folder is None:
            return
        step = len(log.losses)
        if self._training.rank == 0 and self.num_repeated is not None:
            try:
                self._folder.count_step(step)
            except OSError:
                self.num_repeated = None
        # After the last step the model itself is saved.
        if step < self._training.num_steps and self._is_due(step):
            self._write(self._folder, step, log)
            self._written = time.monotonic()

    def _open(self, folder: CheckpointFolder) -> None:
        if self._training.rank:
            return
        try:
            self.num_repeated = folder.open()
        except OSError as error:
            self._say(f"no checkpoints of this training: {folder.folder}: {_short(error)}")

    def _choose(self, refused: list[int]) -> int | None:
        """The newest checkpoint of this training; on rank 0 only."""
        assert self._folder is not None
        try:
            steps = [step for step in self._folder.steps() if step not in refused]
            now = self._identify() if steps else None
        except OSError as error:
            self._say(f"no checkpoint is used: {_short(error)}")
            return None
        reasons: list[str] = []
        for step in steps:
            try:
                identity = read_manifest(self._folder.place(step)).identity
            except DataError as error:
                self._put_aside(self._folder, step, _short(error))
                refused.append(step)
                continue
            assert now is not None
            difference = identity.difference(now)
            if difference is None:
                return step
            if difference not in reasons:
                reasons.append(difference)
                self._say(f"the checkpoint of step {step} is not used: {difference}")
        if refused or reasons:
            self._say("training begins anew: no other checkpoint is there")
        return None

    def _read(self, folder: CheckpointFolder, step: int) -> tuple[Manifest, dict[str, Tensor]]:
        """A checkpoint's manifest, and the tensors that this rank needs of it, all verified.

        Raises DataError, OSError or SafetensorError.
        """
        place, own = folder.place(step), self._training.rank
        manifest = read_manifest(place)
        tensors: dict[str, Tensor] = {}
        for rank in sorted({0, own}):
            if not self._needs(rank):
                continue
            files = files_of(manifest, rank)
            if not files:
                raise DataError(f"{place}: it has no file of rank {rank}")
            for name, digest in files.items():
                if file_sha256(place / name) != digest:
                    raise DataError(f"{place / name}: its checksum does not match")
                held = load_file(place / name)
                # What ranks share is rank 0's; random generators are everyone's own.
                wanted = (
                    held if rank == own else {n: t for n, t in held.items() if not _is_random(n)}
                )
                tensors.update(wanted)
        if (problem := self._shards.misfit(tensors)) is not None:
            raise DataError(f"{place}: {problem}")
        return manifest, tensors

    def _needs(self, rank: int) -> bool:
        """Whether files of a rank hold something for this one."""
        return rank == self._training.rank or not self._shards.is_own("master.0")

    def _is_due(self, step: int) -> bool:
        config = self._training.config
        if config.checkpoint_steps is not None and step % config.checkpoint_steps == 0:
            return True
        seconds = config.checkpoint_seconds
        if seconds is None:
            return False
        # One clock for all: a rank that thought otherwise would wait for ever.
        return self._from_first(lambda: time.monotonic() - self._written >= seconds) is True

    def _write(self, folder: CheckpointFolder, step: int, log: TrainingLog) -> None:
        own = {n: t for n, t in self._shards.state().items() if self._shards.is_own(n)}
        told = self._shards.exchange(
            {
                "bad": next((name for name, tensor in own.items() if not _is_finite(tensor)), None),
                "bytes": sum(t.numel() * t.element_size() for t in own.values()),
            }
        )
        bad = [one["bad"] for one in told if one["bad"] is not None]
        if bad:
            raise DivergenceError(
                f"training {self._training.name}, step {step} of {self._training.num_steps}: "
                f"values of the optimizer's {bad[0].partition('.')[0]} are not finite; nothing was "
                "saved"
            )
        needed = sum(int(one["bytes"]) for one in told)
        problem = self._from_first(lambda: _attempt(lambda: _make_room(folder, step, needed)))
        if problem is None:
            files, problem = self._write_files(folder.partial(step), own)
            told = self._shards.exchange({"files": files, "problem": problem})
            problem = next((one["problem"] for one in told if one["problem"] is not None), None)
            if self._training.rank == 0 and problem is None:
                files = {name: digest for one in told for name, digest in one["files"].items()}
                problem = _attempt(lambda: self._finish(folder, step, log, files))
        if self._training.rank == 0:
            self._note_outcome(folder, step, problem)

    def _write_files(
        self, partial: Path, own: Mapping[str, Tensor]
    ) -> tuple[dict[str, str], str | None]:
        """Writes this rank's files. Their sha256 by name, and what was wrong."""
        kinds: dict[str, dict[str, Tensor]] = {}
        for name, tensor in own.items():
            kind = name.partition(".")[0]
            kinds.setdefault(kind if kind in _LARGE else _SMALL, {})[name] = tensor
        written: dict[str, str] = {}

        def write() -> None:
            for kind, tensors in kinds.items():
                file = partial / file_name(self._training.rank, kind)
                save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, file)
                sync(file)
                written[file.name] = file_sha256(file)

        return written, _attempt(write)

    def _finish(
        self, folder: CheckpointFolder, step: int, log: TrainingLog, files: dict[str, str]
    ) -> None:
        folder.finish(Manifest(self._identify(), step, self._training.num_steps, log, files))

    def _note_outcome(self, folder: CheckpointFolder, step: int, problem: str | None) -> None:
        """Says once when checkpoints can't be written; the next one is tried all the same."""
        if problem is None:
            self._failing = False
            return
        _attempt(lambda: folder.discard(step))  # what it holds is what others lack
        if not self._failing:
            self._failing = True
            self._say(
                f"no checkpoint of step {step}: {problem}; training goes on without it, and tries "
                "again when the next one is due"
            )

    def _put_aside(self, folder: CheckpointFolder, step: int, problem: str) -> None:
        try:
            place = f"set aside as {folder.set_aside(step).name}"
        except OSError as error:
            place = f"it can't be set aside: {_short(error)}"
        self._say(f"damaged checkpoint of step {step}: {problem}; {place}")

    def _identify(self) -> Identity:
        if self._identity is None:
            self._identity = self._training.identify()
        return self._identity

    def _from_first(self, ask: Callable[[], Any]) -> Any:
        """What rank 0 answers, on every rank."""
        answer = ask() if self._training.rank == 0 else None
        return self._shards.exchange({"answer": answer})[0]["answer"]

    def _first_problem(self, problem: str | None) -> str | None:
        """The problem of the first rank that has one, on every rank."""
        told = self._shards.exchange({"problem": problem})
        return next((one["problem"] for one in told if one["problem"] is not None), None)

    def _say(self, text: str) -> None:
        if self._training.rank == 0:
            _LOG.warning("%s", text)
            self._say_aloud(text)


def _make_room(folder: CheckpointFolder, step: int, needed: int) -> None:
    """Begins a checkpoint. Raises OSError, also where it would fill the disk for others."""
    folder.begin(step)
    free = shutil.disk_usage(folder.folder).free
    if free <= needed:
        raise OSError(
            f"{folder.folder}: it takes {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        )


def _attempt(act: Callable[[], object]) -> str | None:
    """What was wrong; None if it went well."""
    try:
        act()
    except (OSError, SafetensorError) as error:
        return _short(error)
    return None


def _is_random(name: str) -> bool:
    return name.startswith("random.")


def _is_finite(tensor: Tensor) -> bool:
    """Without a mask as large as the tensor: its extremes are NaN if any value is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _short(error: Exception) -> str:
    return one_line(error)[:_MAX_PROBLEM]
