"""(torch) What a trainer leaves beside the weights that it saved, for who checks a push of them.

weight-sums.json      sums of tensors: was anything torn or swapped on the way?
changed-columns.json  where few weights were trained: columns that are not what they were before
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# What the trainer says of the tensors that it saved; not every folder has it.
SUMS = "weight-sums.json"
COLUMNS = "changed-columns.json"
# Columns that are looked at per push.
NUM_COLUMNS = 8


def tensor_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes as 64-bit words, modulo 2^64. Reads each byte once."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    whole = raw.size // 8 * 8
    words, rest = raw[:whole].view(np.uint64), raw[whole:]
    total = int(np.add.reduce(words, dtype=np.uint64)) + int.from_bytes(rest.tobytes(), "little")
    return total % 2**64


def write_sums(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes the sums of the tensors that a saved folder was made of, from memory, into it."""
    sums = {name: tensor_sum(tensor) for name, tensor in weights.items()}
    (folder / SUMS).write_text(json.dumps(sums), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, int] | None:
    """What `write_sums` wrote; None if nobody did."""
    file = folder / SUMS
    if not file.is_file():
        return None
    sums = json.loads(file.read_text(encoding="utf-8"))
    return {str(name): int(value) for name, value in sums.items()}


class ChangedColumns:
    """Where to look, to tell the new weights from the old ones, where an adapter was trained.

    Rounded, it leaves many a column as it was. Counted for all matrices of as many columns
    together, since engines fuse some of them.
    """

    def __init__(self) -> None:
        self._num_changed: dict[int, Tensor] = {}  # by a matrix's columns, (K,): matrices

    def note(self, before: Tensor, after: Tensor) -> None:
        """Two matrices (N, K) in the dtype in which they are saved."""
        changed = (before != after).any(0).int().cpu()
        self._num_changed[len(changed)] = self._num_changed.get(len(changed), 0) + changed

    def write(self, folder: Path) -> None:
        """Writes the counts; nothing if nothing was noted."""
        if self._num_changed:
            counts = {size: counts.tolist() for size, counts in self._num_changed.items()}
            (folder / COLUMNS).write_text(json.dumps(counts), encoding="utf-8")


def read_columns(folder: Path) -> dict[int, Tensor]:
    """In how many matrices of K columns each column has changed, (K,) by K; empty: nobody says."""
    file = folder / COLUMNS
    if not file.is_file():
        return {}
    counts = json.loads(file.read_text(encoding="utf-8"))
    return {int(size): torch.tensor(of_size) for size, of_size in counts.items()}
