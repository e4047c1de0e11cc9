"""Before a run starts anything, what its processes need is held against what the machine has."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.config.run import RunConfig
from stargate.errors import MachineError
from stargate.launch.setup import _check_memory
from stargate.resources.gpus import Gpu
from stargate.resources.model_shape import KNOWN
from stargate.resources.placement import place


def model(folder: Path, name: str, **changes: object) -> Path:
    """A model folder as far as its sizes tell: a sparse file stands for the weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**KNOWN[name], **changes}))
    size = 2 * 10**6
    tensor = {"dtype": "BF16", "shape": [10**6], "data_offsets": [0, size]}
    header = json.dumps({"w": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)
    return folder


def check(folder: Path, gpu_gib: float, **changes: Any) -> list[str]:
    config = RunConfig.model_validate({"device": "cuda", **changes})
    prepared: Any = SimpleNamespace(
        config=config,
        placement=place(config, [0, 1], 4, gpu_gib=gpu_gib),
        base_model_dir=folder,
        roleplayer_dir=folder,
    )
    cards = (Gpu("A10G", 80.0, "580.1", (8, 6), "1"), Gpu("A10G", gpu_gib, "580.1", (8, 6), "2"))
    machine: Any = SimpleNamespace(gpus=cards, memory_total_gb=64.0)
    said: list[str] = []
    _check_memory(prepared, machine, said.append)
    return said


def test_the_smallest_gpu_counts(tmp_path: Path) -> None:
    folder = model(tmp_path / "m0", "Qwen/Qwen2.5-1.5B")
    with pytest.raises(MachineError, match=r"^trainer-0 needs 18\.9 GiB of GPU 3"):
        check(folder, 16.0)
    assert check(folder, 24.0) == []
    assert check(folder, 16.0, trainer={"micro_batch_size": 1}) == []


def test_a_kind_of_model_that_is_not_understood_runs_and_is_said(tmp_path: Path) -> None:
    folder = model(tmp_path / "m0", "Qwen/Qwen2.5-1.5B", num_attention_heads=None)
    (said,) = check(folder, 1.0)
    assert said.startswith("note: memory is not checked: model ")
