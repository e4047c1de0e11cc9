"""Checkpoints within one training stage: their names, what belongs to them, which one is whole.

    RUN/tN/training/step-40/rank-0.master.safetensors   rank 0's share; other ranks, other names
    RUN/tN/training/step-40/manifest.json               identity, progress, sha256 of every file
    RUN/tN/training/steps                               one line per optimizer step that was done

A folder is written as step-40.tmp and renamed once all ranks have written and the manifest is
there. It is used only by the same training: same examples, plan, settings, start model, seed,
number of ranks, backend. Plain code without torch; the ranks' side is
actors/training/checkpoints.py.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from stargate.config.run import TrainerConfig
from stargate.errors import DataError
from stargate.records.files import file_sha256, publish_folder, read_json, set_aside
from stargate.types import TrainingExample

MANIFEST = "manifest.json"
# Counts the optimizer steps of all attempts, so that repeated ones are known.
_STEPS = "steps"
_FORMAT = 2
_NAME = re.compile(r"step-(\d{1,9})")
_File = Annotated[str, Field(pattern=r"^rank-\d{1,5}\.[a-z_]{1,32}\.safetensors$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# One may turn out to be torn; then there is the one before it.
_KEPT = 2
# Settings that change how or where the same training runs, or when it is written down.
_FREE = frozenset({"checkpoint_steps", "checkpoint_seconds", "num_threads", "num_gpus_per_rank"})


def training_folder(root: Path, version: int) -> Path:
    """Where the training of m_`version` keeps its checkpoints."""
    return root / f"t{version - 1}" / "training"


def has_checkpoint(folder: Path) -> bool:
    """Whether a training folder has a checkpoint, whole or not."""
    return bool(CheckpointFolder(folder).steps())


@dataclass
class TrainingLog:
    """What the steps did. Tokens count once per epoch; `seconds` are without loading and saving."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_loss_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Identity:
    """What makes two trainings the same one, step by step. Digests are sha256 in hexadecimal."""

    num_ranks: int
    seed: int
    engine: str  # the backend that wrote them: "deepspeed 0.19.8"
    objective: str
    config: dict[str, Any]
    examples: str
    plan: str  # which examples meet in which step, on which rank
    model: str  # the weights that training starts from

    def difference(self, now: "Identity") -> str | None:
        """Why a checkpoint of this identity can't be used by the training `now`; None if it can."""
        if self.num_ranks != now.num_ranks:
            return f"it was written by {self.num_ranks} rank(s), now there are {now.num_ranks}"
        if self.engine != now.engine:
            return f"it was written by {self.engine}, this is {now.engine}"
        keys = {*self.config, *now.config}
        changed = sorted(k for k in keys if self.config.get(k) != now.config.get(k))
        if changed:
            return f"it was written with another {', '.join(f'trainer.{key}' for key in changed)}"
        others = {
            "objective": "another objective",
            "examples": "other examples",
            "model": "another start model",
            "seed": "another seed",
            "plan": "another order of the examples",
        }
        for name, what in others.items():
            if getattr(self, name) != getattr(now, name):
                return f"it is of a training with {what}"
        return None


@dataclass(frozen=True)
class Manifest:
    """One checkpoint. `files` are the sha256 of all its other files, by name."""

    identity: Identity
    step: int  # optimizer steps that are done
    num_steps: int
    log: TrainingLog
    files: dict[_File, _Sha256]


class CheckpointFolder:
    """RUN/tN/training. Methods raise OSError; whoever writes checkpoints can do without them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ours: list[int] = []  # written or used by this training, oldest first

    def open(self) -> int:
        """Makes the folder and removes what a killed writer left.

        Returns how many optimizer steps earlier attempts have done.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob("step-*.tmp"):
            shutil.rmtree(partial)
        steps = self.folder / _STEPS
        return steps.read_bytes().count(b"\n") if steps.is_file() else 0

    def count_step(self, number: int) -> None:
        """Notes that an optimizer step was done. It need not survive a power cut."""
        with (self.folder / _STEPS).open("a", encoding="ascii") as file:
            file.write(f"{number}\n")

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, newest first."""
        if not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(place.name) for place in self.folder.iterdir() if place.is_dir()]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def place(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def partial(self, step: int) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self.folder / f"step-{step}.tmp"

    def begin(self, step: int) -> None:
        """Makes an empty folder to write into."""
        self.discard(step)
        self.partial(step).mkdir(parents=True)

    def discard(self, step: int) -> None:
        """Removes what was written of a checkpoint that can't be finished."""
        if self.partial(step).exists():
            shutil.rmtree(self.partial(step))

    def finish(self, manifest: Manifest) -> None:
        """Gives the checkpoint its name; all ranks have written and synced their files.

        Others than it and the one before go away, those of another training too.
        """
        partial, place = self.partial(manifest.step), self.place(manifest.step)
        (partial / MANIFEST).write_text(_encode(manifest), encoding="utf-8")
        publish_folder(partial, place)
        self.use(manifest.step)
        for step in self.steps():
            if step not in self._ours:
                shutil.rmtree(self.place(step))

    def use(self, step: int) -> None:
        """From now on a checkpoint counts as one of this training."""
        self._ours = [*(known for known in self._ours if known != step), step][-_KEPT:]

    def set_aside(self, step: int) -> Path:
        """Renames a damaged checkpoint. Returns its new place."""
        self._ours = [known for known in self._ours if known != step]
        return set_aside(self.place(step))


def remove_training(folder: Path) -> None:
    """Removes a training folder: its model is saved and its result is on record.

    Raises OSError. A second call does nothing.
    """
    if folder.is_dir():
        shutil.rmtree(folder)


def read_manifest(place: Path) -> Manifest:
    """The manifest of a checkpoint. Raises DataError if it is missing, torn or not a manifest."""
    file = place / MANIFEST
    values = read_json(file)
    if values is None:
        raise DataError(f"{file}: is missing")
    checksum = values.pop("checksum", None)
    if checksum != _sha256(_canonical(values)):
        raise DataError(f"{file}: its checksum does not match")
    if values.pop("format", None) != _FORMAT:
        raise DataError(f"{file}: is of another version of stargate")
    try:
        manifest = TypeAdapter(Manifest).validate_python(values)
    except ValueError as error:
        raise DataError(f"{file}: not what a trainer writes: {error}") from error
    match, log = _NAME.fullmatch(place.name), manifest.log
    if match is None or int(match[1]) != manifest.step or manifest.step > manifest.num_steps:
        raise DataError(f"{file}: its step is not that of the folder")
    if {len(log.losses), len(log.grad_norms), len(log.rates)} != {manifest.step}:
        raise DataError(f"{file}: it has not one loss, norm and rate per step")
    return manifest


def file_name(rank: int, kind: str) -> str:
    """The file of a rank's tensors of one kind ("master")."""
    return f"rank-{rank}.{kind}.safetensors"


def files_of(manifest: Manifest, rank: int) -> dict[str, str]:
    """The files of one rank, with their sha256."""
    prefix = f"rank-{rank}."
    return {name: sha for name, sha in manifest.files.items() if name.startswith(prefix)}


def settings_of(config: TrainerConfig) -> dict[str, Any]:
    """What of a trainer's config changes what is learned, as plain values."""
    return config.model_dump(mode="json", exclude=set(_FREE))


def examples_digest(examples: Sequence[TrainingExample]) -> str:
    """Of the examples in the order in which the plan counts them."""
    sha256 = hashlib.sha256()
    for example in examples:
        # The response's tokens are among the ids. Not asdict, which copies every id.
        row = [getattr(example, name) for name in example.__match_args__ if name != "response"]
        sha256.update(json.dumps(row).encode() + b"\n")
    return sha256.hexdigest()


def model_digest(folder: Path) -> str:
    """Of the weights and the config in a model folder; not of its tokenizer, nor of its name.

    Raises OSError.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return _sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files))


def _encode(manifest: Manifest) -> str:
    # A number that is not finite is a ValueError here: none may be written.
    values = {"format": _FORMAT, **asdict(manifest)}
    return json.dumps({**values, "checksum": _sha256(_canonical(values))}, allow_nan=False)


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
