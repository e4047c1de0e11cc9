"""Folders that pass for a model as far as files and headers go."""

import json
from pathlib import Path


def safetensors_bytes(values: int = 4, num_tensors: int = 1) -> bytes:
    """A safetensors file with `num_tensors` (a, b, ...) float32 tensors of `values` zeros each."""
    size = 4 * values
    form = {"dtype": "F32", "shape": [values]}
    tensors = {
        chr(97 + n): {**form, "data_offsets": [n * size, n * size + size]}
        for n in range(num_tensors)
    }
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size * num_tensors)


def write_model(folder: Path, weights: bytes = safetensors_bytes()) -> Path:
    """Writes such a folder, or again into one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder
