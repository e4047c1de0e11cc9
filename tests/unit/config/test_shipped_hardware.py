"""Every shipped config fits the hardware that its header names."""

import re
from pathlib import Path

import pytest

from stargate.config.files import load_config, packaged_configs_dir
from stargate.launch.dry_run import find_shapes
from stargate.resources.placement import place
from stargate.resources.run_plan import plan_problems, plan_processes

CONFIGS = sorted(packaged_configs_dir().glob("*.yaml"))
# GiB of the smallest cards that are sold as so many GB (A10G, H100).
SMALLEST = {"24": 22.0, "80": 79.1}
_GPUS = re.compile(r"^# Hardware: (\d+) GPUs? of (\d+) GB", re.MULTILINE)
_MEMORY = re.compile(r"^# Hardware: (\d+) cores, (\d+) GiB of free memory", re.MULTILINE)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_fits(file: Path) -> None:
    header, notes = file.read_text(encoding="utf-8"), list[str]()
    config = load_config(file)
    shapes = find_shapes(config, notes)
    assert not notes  # all of its models are known without network
    gpus, memory = _GPUS.search(header), _MEMORY.search(header)
    if gpus is not None:
        count, gib, total = int(gpus[1]), SMALLEST[gpus[2]], 64.0
        placement = place(config, list(range(64)), count, gpu_gib=gib)
        assert placement.device == "cuda"
        assert count == 1 or sum(seat.num_gpus for seat in placement.seats.values()) == count
    else:
        assert memory is not None, "the header names no hardware"
        count, gib, total = 0, 0.0, float(memory[2])
        placement = place(config, list(range(int(memory[1]))), 8)
        assert placement.device == "cpu"  # whatever the machine has
    processes = plan_processes(config, placement, shapes, gpu_gib=gib, memory_gib=total)
    for process in processes:
        print(f"{file.stem}: {process.name} {process.needs_gib:.1f} of {process.has_gib:.1f} GiB")
    assert list(plan_problems(config, processes, shapes)) == []


def test_the_way_to_a_larger_model_that_one_gpu_names() -> None:
    text = (packaged_configs_dir() / "one_gpu.yaml").read_text(encoding="utf-8")
    said = re.search(r"^# 1.5 billion: (.+)$", text, re.MULTILINE)
    assert said is not None
    config = load_config("one_gpu", said[1].split())
    shapes = find_shapes(config, [])
    placement = place(config, [0, 1], 1, gpu_gib=22.0)
    processes = plan_processes(config, placement, shapes, gpu_gib=22.0, memory_gib=64.0)
    assert list(plan_problems(config, processes, shapes)) == []
