"""A model folder as far as its files tell: config, whole safetensors weights, a tokenizer."""

import hashlib
import json
import operator
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from stargate.errors import ModelError
from stargate.records.files import file_sha256

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# The checksums of the folder that it stands in, where a package's model was converted.
MANIFEST = "manifest.json"
# What makes a folder usable beside its weights: config, generation config, tokenizer, chat template
# and, for models with code of their own, that code.
_COMPANION_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"})
_COMPANION_FOLDERS = ("additional_chat_templates",)
_WEIGHT_INDEX_SUFFIX = ".index.json"
# safetensors itself reads no longer header.
_MAX_HEADER_BYTES = 100_000_000
# What is read of a tensor for a fingerprint, at its start, its middle and its end.
_SAMPLE_BYTES = 4096
# Any one of these sets of files is a tokenizer.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


def check_model_folder(folder: Path, *, weights: bool = True) -> None:
    """Raises ModelError unless `folder` holds a config, whole safetensors weights and a tokenizer.

    Without `weights` there need be none: who only renders texts has no use for them.
    Reads headers and sizes only, so that large models cost nothing. What the folder's chat template
    can do is for chat.py to say.
    """
    if not folder.is_dir():
        raise ModelError(f"model {folder}: not a folder")
    config = read_object(folder / "config.json")
    if not config.get("model_type"):
        raise ModelError(f"{folder / 'config.json'}: names no model_type; not a model's config")
    if (folder / ADAPTER).exists():
        # transformers would put it on top of the weights, vLLM would not: two different models.
        raise ModelError(
            f"model {folder}: holds an adapter ({ADAPTER}) beside the model; merge it into the "
            "weights (peft: merge_and_unload), or move it to a folder of its own"
        )
    if weights:
        shards = weight_files(folder)
        for shard in shards:
            read_header(shard)
        _check_one_set(folder, shards)
    if not any(all((folder / file).is_file() for file in files) for files in TOKENIZERS):
        known = " or ".join(" + ".join(files) for files in TOKENIZERS)
        raise ModelError(f"model {folder}: no tokenizer; expected {known}")


def _check_one_set(folder: Path, shards: Collection[Path]) -> None:
    """Raises ModelError where vLLM would load other files than `shards`, which transformers loads:

    with an index those that it names, without one all.
    """
    index = folder / WEIGHTS_INDEX
    found = _indexed(index) if index.is_file() else folder.glob("*.safetensors")
    if more := {file.name for file in found} ^ {file.name for file in shards}:
        raise ModelError(
            f"model {folder}: holds two sets of weights: {', '.join(sorted(more)[:3])} would be "
            "loaded by engines or by scorer and trainer, but not by both; keep one set"
        )


def read_header(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name, each with dtype, shape and data_offsets.

    Raises ModelError for what its header and size say is wrong with it.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        if head.startswith(b"version "):
            raise ModelError(f"{file}: a Git LFS pointer, not the weights; run: git lfs pull")
        header_size = int.from_bytes(head, "little")
        if header_size > _MAX_HEADER_BYTES and len(head) == 8:
            raise ModelError(f"{file}: its header would have {header_size:,} bytes; not read")
        if len(head) < 8 or header_size > size - 8:
            raise ModelError(f"{file}: cut off or not a safetensors file ({size} bytes)")
        try:
            header = json.loads(stream.read(header_size))
            tensors = {name: tensor for name, tensor in header.items() if name[:2] != "__"}
            ends = [operator.index(tensor["data_offsets"][1]) for tensor in tensors.values()]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError):
            raise ModelError(f"{file}: not a safetensors file") from None
    if not ends:
        raise ModelError(f"{file}: holds no weights")
    expected = 8 + header_size + max(ends)
    if size != expected:
        raise ModelError(f"{file}: cut off: {size} bytes, its header says {expected}")
    return tensors


def weight_files(location: str | Path) -> list[Path]:
    """The safetensors files of a model folder, or `location` itself if it is one file.

    Raises ModelError.
    """
    folder = Path(location)
    if folder.is_file():
        return [folder]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        if any(folder.glob("*.bin")):
            raise ModelError(
                f"model {folder}: only pickled weights (*.bin); save it as safetensors first"
            )
        raise ModelError(f"model {folder}: no weights; expected {WEIGHTS} or {WEIGHTS_INDEX}")
    return _indexed(index)


def _indexed(index: Path) -> list[Path]:
    """The weight files that an index names. Raises ModelError."""
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index}: not a safetensors index: it names no weight files")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name:  # an index must not lead out of its folder
            raise ModelError(f"{index}: weight_map must hold plain file names, got {name!r}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index}: {len(missing)} of {len(names)} weight files are missing, first {missing[0]}"
        )
    return [index.parent / name for name in names]


def copy_companions(source: Path, target: Path, but: Collection[str] = ()) -> None:
    """Copies the files that a model needs beside its weights, without their modes; none of the
    names in `but`. Raises OSError.
    """
    for file in companions(source):
        if file.name not in but:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def companions(folder: Path) -> Iterator[Path]:
    """The files that a model needs beside its weights, in order. Raises OSError."""
    for file in sorted(folder.iterdir()):
        wanted = file.suffix in _COMPANION_SUFFIXES and not file.name.endswith(_WEIGHT_INDEX_SUFFIX)
        # In a copy the manifest would be false.
        if file.is_file() and wanted and file.name != MANIFEST:
            yield file
    for name in _COMPANION_FOLDERS:
        if (folder / name).is_dir():
            yield from sorted(file for file in (folder / name).iterdir() if file.is_file())


def folder_named(name: str) -> Path:
    """The folder that a config calls `name`, "~" resolved; it may be none. Raises ModelError."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # no such user, no home
        raise ModelError(f"model {name!r}: {error}") from None


def read_object(file: Path) -> dict[str, object]:
    """A JSON file that holds an object. Raises ModelError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model {file.parent}: {file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected an object, got {type(content).__name__}")
    return content


def fingerprint(folder: Path) -> str:
    """A digest that tells two models apart: of the files beside the weights, whole, and of what
    `weights_fingerprint` reads. Raises OSError and ModelError.
    """
    parts = [f"{file.name} {file_sha256(file)}" for file in companions(folder)]
    return hashlib.sha256(f"{parts} {weights_fingerprint(folder)}".encode()).hexdigest()


def weights_fingerprint(folder: Path) -> str | None:
    """A digest of a model's weights without reading gigabytes: of each weight file's name, size and
    header, and of 4 KiB at the start, the middle and the end of each of its tensors. None where the
    folder has no weights, as that of who only renders texts.

    Training changes all of a tensor that it changes; a few rows that are edited in the middle of
    one are not seen, and nobody is kept from forging it. Raises OSError and ModelError.
    """
    if not any(folder.glob("*.safetensors")):
        return None
    sha256 = hashlib.sha256()
    for file in weight_files(folder):
        tensors = read_header(file)
        with file.open("rb", buffering=0) as stream:
            data = 8 + int.from_bytes(stream.read(8), "little")
            sha256.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            sha256.update(stream.read(data - 8))
            for first, end in sorted(tensor["data_offsets"] for tensor in tensors.values()):
                last = max(end - _SAMPLE_BYTES, first)
                for place in sorted({first, (first + last) // 2, last}):
                    stream.seek(data + place)
                    sha256.update(stream.read(min(_SAMPLE_BYTES, end - place)))
    return sha256.hexdigest()
