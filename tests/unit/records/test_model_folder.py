"""Fingerprints of weights: each tensor counts, and gigabytes are not read."""

import json
from pathlib import Path

import pytest

from stargate.records.model_folder import fingerprint, weights_fingerprint
from tests.fakes.model_files import safetensors_bytes, write_model

NUM_TENSORS, NUM_VALUES = 5, 100_000


@pytest.mark.parametrize("tensor", range(NUM_TENSORS))
def test_each_tensor_counts(tmp_path: Path, tensor: int) -> None:
    """As where an adapter was merged into one kind of layer only."""
    content = safetensors_bytes(NUM_VALUES, NUM_TENSORS)
    folder = write_model(tmp_path, content)
    before = weights_fingerprint(folder), fingerprint(folder)
    start = len(content) - 4 * NUM_VALUES * (NUM_TENSORS - tensor)
    changed = content[:start] + b"\1" * (4 * NUM_VALUES) + content[start + 4 * NUM_VALUES :]
    assert len(changed) == len(content)
    write_model(folder, changed)
    assert weights_fingerprint(folder) != before[0]
    assert fingerprint(folder) != before[1]
    assert weights_fingerprint(write_model(tmp_path / "copy", content)) == before[0]


def test_gigabytes_are_not_read(tmp_path: Path) -> None:
    size = 1 << 33
    tensors = {
        name: {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, i * size + size]}
        for i, name in enumerate("ab")
    }
    header = json.dumps(tensors).encode()
    folder = write_model(tmp_path, len(header).to_bytes(8, "little") + header)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(8 + len(header) + 2 * size)  # holes: no disk is filled
    before = _num_read()
    assert weights_fingerprint(folder) is not None
    assert _num_read() - before < 1 << 20


def _num_read() -> int:
    """Bytes that this process has read so far, from wherever."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar:")).split()[1])


def test_who_has_no_weights_has_no_fingerprint_of_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.safetensors").unlink()
    assert weights_fingerprint(folder) is None
    assert fingerprint(folder)
