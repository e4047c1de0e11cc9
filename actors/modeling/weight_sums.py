"""(torch) Sums of tensors, by which who reads a saved model sees that nothing was torn or swapped.

the trainer's tensors --write_sums--> weight-sums.json beside the saved weights --read_sums-->
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# What the trainer says of the tensors that it saved; not every folder has it.
SUMS = "weight-sums.json"


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
