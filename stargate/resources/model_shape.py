"""What a decoder's config.json says of its size, without loading it.

    a model folder, one in the hub's cache, or a name of KNOWN -> ModelShape, or what is not known

Dense decoders and mixtures of experts whose config has the usual keys. The number of parameters is
that of the weight files where they are there, else computed from the shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from stargate.errors import ModelError
from stargate.records.model_folder import (
    folder_named,
    read_header,
    read_object,
    weight_files,
)
from stargate.resources.embedded import EMBEDDED


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a causal language model. `parameters` counts tied embeddings once.

    `experts` is 0 for a dense model; `intermediate` is that of one MLP or of one expert, and a
    token passes `mlps` of them in each layer.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    experts: int = 0
    mlps: int = 1
    parameters: int = 0

    @property
    def embedding(self) -> int:
        """Parameters of the largest tensor outside of the layers: one row per token."""
        return self.vocabulary * self.hidden

    @property
    def active(self) -> int:
        """Parameters that one token passes."""
        idle = max(0, self.experts - self.mlps)
        return self.parameters - self.layers * idle * 3 * self.hidden * self.intermediate

    @property
    def linear_widths(self) -> int:
        """Inputs and outputs of a layer's linear maps, summed: LoRA has rank times as many."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 4 * self.hidden + 2 * queries + 2 * keys
        return attention + 3 * max(1, self.experts) * (self.hidden + self.intermediate)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises KeyError for a size that is not in it."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # models that also see or hear keep their language part here
        config = {**config, **inner}
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    shape = ModelShape(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate=(experts and config.get("moe_intermediate_size"))
        or config["intermediate_size"],
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        experts=experts,
        mlps=config["num_experts_per_tok"] if experts else 1,
    )
    return replace(shape, parameters=_count(shape, config.get("model_type")))


def _count(shape: ModelShape, model_type: object) -> int:
    """Parameters of a Llama and of what differs little from it."""
    hidden, queries, keys = (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    )
    mlp = 3 * hidden * shape.intermediate
    per_layer = 2 * hidden * (queries + keys) + 2 * hidden  # projections and two norms
    per_layer += shape.experts * (mlp + hidden) if shape.experts else mlp
    if model_type == "qwen2":
        per_layer += queries + 2 * keys  # biases
    if model_type in ("qwen3", "qwen3_moe"):
        per_layer += 2 * shape.head_dim  # norms of queries and keys
    return shape.layers * per_layer + hidden + (1 if shape.tied else 2) * shape.embedding


def folder_shape(folder: Path) -> ModelShape:
    """The shape of a model folder; its parameters as its files count them. Raises ModelError."""
    try:
        shape = shape_of(read_object(folder / "config.json"))
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"model {folder}: its config.json does not say {error}, so what it needs is not known"
        ) from None
    tensors = [t for file in weight_files(folder) for t in read_header(file).values()]
    return replace(shape, parameters=sum(prod(tensor["shape"]) for tensor in tensors))


def find_shape(name: str) -> ModelShape | None:
    """The shape of a model named in a config, without any network; None: it is not known here.

    Raises ModelError for a folder that is damaged or of a kind that is not understood.
    """
    folder = folder_named(name)
    if name != EMBEDDED and folder.is_dir():
        return folder_shape(folder)
    name, _, revision = name.partition("@")
    if name in KNOWN:
        return shape_of(KNOWN[name])
    cached = _cached_config(name, revision or None)
    if cached is None:
        return None
    try:
        return shape_of(read_object(cached))
    except (KeyError, TypeError):  # as in folder_shape
        return None


def _cached_config(name: str, revision: str | None) -> Path | None:
    """config.json of a model that the hub's client downloaded once."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _config(
    model_type: str,
    hidden: int,
    layers: int,
    heads: tuple[int, int],
    intermediate: int,
    vocabulary: int,
    tied: bool = False,
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


_WIDE = {"head_dim": 128}  # more than hidden / heads
_QWEN2 = {
    "0.5B": _config("qwen2", 896, 24, (14, 2), 4864, 151936, True),
    "1.5B": _config("qwen2", 1536, 28, (12, 2), 8960, 151936, True),
    "3B": _config("qwen2", 2048, 36, (16, 2), 11008, 151936, True),
    "7B": _config("qwen2", 3584, 28, (28, 4), 18944, 152064),
}
_QWEN3 = {
    "0.6B": _config("qwen3", 1024, 28, (16, 8), 3072, 151936, True) | _WIDE,
    "1.7B": _config("qwen3", 2048, 28, (16, 8), 6144, 151936, True) | _WIDE,
    "4B": _config("qwen3", 2560, 36, (32, 8), 9728, 151936, True) | _WIDE,
    "8B": _config("qwen3", 4096, 36, (32, 8), 12288, 151936) | _WIDE,
    "14B": _config("qwen3", 5120, 40, (40, 8), 17408, 151936) | _WIDE,
    "32B": _config("qwen3", 5120, 64, (64, 8), 25600, 151936) | _WIDE,
}
# What the published config.json of each model says, so that a run can be planned without network.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    EMBEDDED: _config("llama", 576, 30, (9, 3), 1536, 49152, True),
    **{f"Qwen/Qwen2.5-{size}{kind}": c for size, c in _QWEN2.items() for kind in ("", "-Instruct")},
    **{f"Qwen/Qwen3-{size}": config for size, config in _QWEN3.items()},
    "Qwen/Qwen3-30B-A3B": {
        **_config("qwen3_moe", 2048, 48, (32, 4), 6144, 151936),
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        **_WIDE,
    },
    "mistralai/Mistral-7B-Instruct-v0.2": _config("mistral", 4096, 32, (32, 8), 14336, 32000),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        **_config("mixtral", 4096, 32, (32, 8), 14336, 32000),
        **{"num_local_experts": 8, "num_experts_per_tok": 2},
    },
    "meta-llama/Llama-3.1-8B-Instruct": _config("llama", 4096, 32, (32, 8), 14336, 128256),
}
