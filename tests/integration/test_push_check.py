"""Weight pushes that go wrong on purpose, in a real engine."""

import subprocess
import sys
from pathlib import Path

import pytest

from stargate.resources.models import resolve_model
from tests.integration.tiny_model import save_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.engines]


# In one process, so that the worker's code can be spoiled. vLLM leaves threads behind: a process
# of its own, ended at once.
_IN_PROCESS = """
import os, sys
from pathlib import Path
os.environ.update(
    VLLM_CPU_OMP_THREADS_BIND="0", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR"
)
from stargate.actors.engines import weight_transfer
from stargate.actors.engines.spec import EngineSpec, engine_arguments
from stargate.actors.engines.weight_check import (WeightMismatch)
from stargate.actors.modeling.weight_sums import write_sums
from stargate.config.run import EngineConfig

old, new = sys.argv[1:]
config = EngineConfig(max_model_len=256, cpu_kv_cache_gb=0.1)
arguments = engine_arguments(EngineSpec("questioner", old, config))
arguments.pop("logits_processors")
from safetensors.torch import load_file
from vllm import LLM
llm = LLM(**arguments)  # kept: what it has set up ends with it
engine = llm.llm_engine.engine_core.engine_core
worker = engine.model_executor.driver_worker.worker

def push(folder):
    worker.start_weight_update()
    worker.update_weights({"files": [folder + "/model.safetensors"]})
    worker.finish_weight_update()

def outcome(folder):
    try:
        push(folder)
    except WeightMismatch as problem:
        return str(problem)
    return "took"

unchecked = []
check = weight_transfer.Watch.check
def counted(self, model):
    unchecked.append(check(self, model))
    return unchecked[-1]
weight_transfer.Watch.check = counted

print("whole:", outcome(new), unchecked)
# From now on loaded directly. Once more by vLLM's own way:
transfer = worker.weight_transfer_engine
print("direct:", transfer._is_plain)
transfer._is_plain = False

# Our mending of tied layers left out: the packed output head keeps the old weight, as it once did.
prepare = weight_transfer._prepare_tied_layers
weight_transfer._prepare_tied_layers = lambda model: None
print("head:", outcome(old))
weight_transfer._prepare_tied_layers = prepare
worker._weight_update_active = False

# One layer's packed weight is replaced by another's before it is served.
def swap(model):
    prepare(model)
    layers = model.model.layers
    layers[0].mlp.down_proj.cpu_linear = layers[1].mlp.down_proj.cpu_linear
weight_transfer._prepare_tied_layers = swap
print("layer:", outcome(new))
weight_transfer._prepare_tied_layers = prepare
worker._weight_update_active = False

# Both ways give the same model: whole columns of every layer, asked for.
def columns():
    import torch
    model = transfer.model
    held = {}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if hasattr(method, "apply") and "weight" in module._parameters:
            size = getattr(module, "input_size_per_partition", 32)
            held[name] = method.apply(module, torch.eye(size, dtype=torch.bfloat16), bias=None)
    return held
print("again:", outcome(new), transfer._is_plain)
by_vllm = columns()
print("old:", outcome(old))
other = columns()
print("new:", outcome(new))
direct = columns()
print("same:", len(by_vllm), all(direct[n].equal(by_vllm[n]) for n in by_vllm),
      any(other[n].equal(by_vllm[n]) for n in by_vllm))

# The file changes after the trainer has said what is in it.
write_sums(Path(new), load_file(new + "/model.safetensors"))
print("sums:", outcome(new))
with open(new + "/model.safetensors", "r+b") as file:
    file.seek(-100, 2)
    file.write(b"\\x01")
print("file:", outcome(new))
sys.stdout.flush()
os._exit(0)
"""


def test_a_push_that_did_not_take_is_named(tmp_path: Path) -> None:
    embedded = resolve_model("embedded")
    old = save_tiny_model(tmp_path / "old", embedded, dtype="bfloat16")
    new = save_tiny_model(tmp_path / "new", embedded, dtype="bfloat16", seed=1)
    done = subprocess.run(
        [sys.executable, "-c", _IN_PROCESS, str(old), str(new)],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert said["whole"] == "took [[]]"
    other = "the engine holds other values than were sent"
    assert said["head"] == f"lm_head.weight: {other}"
    assert said["layer"] == f"model.layers.0.mlp.down_proj.weight: {other}"
    assert said["direct"] == "True"
    assert (said["again"], said["old"], said["new"]) == ("took True", "took", "took")
    # Two layers of four matrices, embedding and output head: all the same, none as before.
    assert said["same"] == "10 True False"
    assert said["sums"] == "took"
    assert said["file"].endswith("the file's bytes are not those that were saved")
