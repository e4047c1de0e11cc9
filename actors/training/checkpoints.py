"""(torch) Checkpoints of a training stage as its ranks write and read them.

    restore: newest whole checkpoint of this very training -> every rank's tensors -> its log
    after_step: due? -> room? -> every rank its files -> all finite? -> rank 0: manifest, rename

Rank 0 decides and speaks, every rank writes and verifies its share of the files and reads all, and
they tell each other what came of it (`exchange`). Checkpoints are a convenience: without room for
one, training goes on. Only values that are not finite stop it, for then the weights are lost.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stargate.actors.training.backend import Backend
from stargate.actors.training.spec import TrainerSpec
from stargate.errors import DataError, DivergenceError, one_line
from stargate.records.files import file_sha256, sync
from stargate.records.training_checkpoints import (
    CheckpointFolder,
    Identity,
    Manifest,
    TrainingLog,
    file_name,
    files_of,
    read_manifest,
)

_LOG = logging.getLogger(__name__)

# Characters of a problem that ranks tell each other.
_MAX_PROBLEM = 400
# After a checkpoint training goes on for so many times as long as it took, before the next is due
# by the clock: a large model's takes minutes, in which all ranks wait.
_PAUSE = 10.0


@dataclass(frozen=True)
class Training:
    """Which training it is, and who of its ranks we are. `identify` is only asked on rank 0."""

    name: str  # "m_1"
    num_steps: int
    spec: TrainerSpec
    identify: Callable[[], Identity]


class Checkpoints:
    """The checkpoints of one training stage, on one rank. Without a folder there are none."""

    def __init__(
        self, backend: Backend, training: Training, folder: Path | None, say: Callable[[str], None]
    ) -> None:
        """`say` is called on rank 0 with what a person should know."""
        self._backend = backend
        self._training = training
        self._folder = None if folder is None else CheckpointFolder(folder)
        self._is_first = training.spec.rank == 0
        self._say_aloud = say
        self._written = time.monotonic()
        self._write_seconds = 0.0  # of the last checkpoint
        self._failing = False
        # Steps that were done before and had to be repeated; None: nobody counts.
        self.num_repeated: int | None = None

    def restore(self) -> TrainingLog:
        """Puts the stage where the newest usable checkpoint has it. Empty without one."""
        if (folder := self._folder) is None:
            return TrainingLog()
        if self._is_first:
            try:
                self.num_repeated = folder.open()
            except OSError as error:
                self._say(f"no checkpoints of this training: {folder.folder}: {_short(error)}")
        refused: list[int] = []
        while (step := self._from_first(partial(self._choose, folder, refused))) is not None:
            try:
                manifest, tensors = self._read(folder.place(step))
                problem = None
            except (DataError, OSError, SafetensorError) as error:
                problem = _short(error)
            problem = _first("problem", self._backend.exchange({"problem": problem}))
            if problem is None:
                for (kind, name), tensor in tensors.items():
                    self._backend.set(kind, name, tensor)
                folder.use(step)
                self._written = time.monotonic()
                if self.num_repeated is not None:
                    self.num_repeated = max(0, self.num_repeated - step)
                self._say(f"training goes on from step {step} of {manifest.num_steps}")
                return manifest.log
            refused.append(step)
            if self._is_first:
                self._put_aside(folder, step, problem)
        return TrainingLog()

    def after_step(self, log: TrainingLog) -> None:
        """To be called after every step. Writes a checkpoint if one is due.

        Raises DivergenceError on all ranks if a weight or moment is not finite.
        """
        if self._folder is None:
            return
        step = len(log.losses)
        if self._is_first and self.num_repeated is not None:
            try:
                self._folder.count_step(step)
            except OSError:
                self.num_repeated = None
        # After the last step the model itself is saved.
        if step < self._training.num_steps and self._is_due(step):
            started = time.monotonic()
            self._write(self._folder, step, log)
            self._written = time.monotonic()
            self._write_seconds = self._written - started

    def _choose(self, folder: CheckpointFolder, refused: list[int]) -> int | None:
        """The newest checkpoint of this training; on rank 0 only."""
        try:
            steps = [step for step in folder.steps() if step not in refused]
            now = self._training.identify() if steps else None
        except OSError as error:
            self._say(f"no checkpoint is used: {_short(error)}")
            return None
        reasons: list[str] = []
        for step in steps:
            try:
                identity = read_manifest(folder.place(step)).identity
            except DataError as error:
                self._put_aside(folder, step, _short(error))
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

    def _put_aside(self, folder: CheckpointFolder, step: int, problem: str) -> None:
        try:
            place = f"set aside as {folder.set_aside(step).name}"
        except OSError as error:
            place = f"it can't be set aside: {_short(error)}"
        self._say(f"damaged checkpoint of step {step}: {problem}; {place}")

    def _read(self, place: Path) -> tuple[Manifest, dict[tuple[str, str], Tensor]]:
        """A checkpoint's manifest, and this rank's tensors of it, by kind and name.

        Each rank verifies the files that it wrote. The tensors stay on disk until they are used.
        Raises DataError, OSError or SafetensorError.
        """
        manifest = read_manifest(place)
        for file, digest in files_of(manifest, self._training.spec.rank).items():
            if file_sha256(place / file) != digest:
                raise DataError(f"{place / file}: its checksum does not match")
        held = {file: load_file(place / file) for file in manifest.files}
        tensors = {}
        for rank, kind, name, shape in self._tensors():
            tensor = held.get(file_name(rank, kind), {}).get(name)
            if tensor is None or tensor.shape != shape:
                raise DataError(f"{place}: it has no {kind} of {name} of shape {tuple(shape)}")
            tensors[kind, name] = tensor
        return manifest, tensors

    def _is_due(self, step: int) -> bool:
        config = self._training.spec.config
        if config.checkpoint_steps is not None and step % config.checkpoint_steps == 0:
            return True
        seconds = config.checkpoint_seconds
        if seconds is None:
            return False
        pause = max(seconds, _PAUSE * self._write_seconds)
        # One clock for all: a rank that thought otherwise would wait for ever.
        return self._from_first(lambda: time.monotonic() - self._written >= pause) is True

    def _write(self, folder: CheckpointFolder, step: int, log: TrainingLog) -> None:
        training, bad = self._training, None
        needed = sum(4 * shape.numel() for *_, shape in self._tensors())
        problem = self._from_first(lambda: _attempt(lambda: _make_room(folder, step, needed)))
        if problem is None:
            told = self._backend.exchange(self._write_files(folder.partial(step)))
            bad = _first("bad", told)
            problem = bad or _first("problem", told)
            if self._is_first and problem is None:
                files = {name: digest for one in told for name, digest in one["files"].items()}
                manifest = Manifest(training.identify(), step, training.num_steps, log, files)
                problem = _attempt(lambda: folder.finish(manifest))
        if self._is_first and problem is not None:
            _attempt(lambda: folder.discard(step))  # what it holds is what others lack
        if bad is not None:
            raise DivergenceError(
                f"training {training.name}, step {step} of {training.num_steps}: values of the "
                f"optimizer's {bad} are not finite; nothing was saved"
            )
        # Said once when checkpoints can't be written; the next one is tried all the same.
        if problem is not None and not self._failing:
            self._say(
                f"no checkpoint of step {step}: {problem}; training goes on without it, and tries "
                "again when the next one is due"
            )
        self._failing = problem is not None

    def _write_files(self, folder: Path) -> dict[str, Any]:
        """Writes this rank's files, a kind at a time: each is as large as the weights.

        Their sha256 by name, what was wrong, and which kind has values that are not finite.
        """
        files: dict[str, str] = {}
        problem = bad = None
        for kind, of_kind in groupby(self._tensors(), key=itemgetter(1)):
            own = {}
            for rank, _, name, _ in of_kind:
                tensor = self._backend.get(kind, name)  # all ranks, whatever happens
                if rank == self._training.spec.rank:
                    own[name] = tensor.cpu().contiguous()
            if not all(map(_is_finite, own.values())):
                bad = bad or kind
            if problem is None and bad is None and own:
                file = folder / file_name(self._training.spec.rank, kind)
                try:
                    save_file(own, file)
                    sync(file)
                    files[file.name] = file_sha256(file)
                except (OSError, SafetensorError) as error:
                    problem = _short(error)
        return {"files": files, "problem": problem, "bad": bad}

    def _tensors(self) -> Iterator[tuple[int, str, str, torch.Size]]:
        """All that a checkpoint holds: the rank that writes it, kind, name, shape."""
        spec = self._training.spec
        for kind, shapes in self._backend.shapes.items():
            for number, (name, shape) in enumerate(shapes.items()):
                # Random generators are everyone's own.
                yield spec.rank if kind == "random" else number % spec.world_size, kind, name, shape

    def _from_first(self, ask: Callable[[], Any]) -> Any:
        """What rank 0 answers, on every rank."""
        answer = ask() if self._is_first else None
        return self._backend.exchange({"answer": answer})[0]["answer"]

    def _say(self, text: str) -> None:
        if self._is_first:
            _LOG.warning("%s", text)
            self._say_aloud(text)


def _first(name: str, told: Sequence[Mapping[str, Any]]) -> Any:
    """What the first rank said that has something to say of this name."""
    return next((one[name] for one in told if one[name] is not None), None)


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


def _is_finite(tensor: Tensor) -> bool:
    """Without a mask as large as the tensor: its extremes are NaN if any value is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _short(error: Exception) -> str:
    return one_line(error)[:_MAX_PROBLEM]
