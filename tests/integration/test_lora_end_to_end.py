"""LoRA from training to engines: what is saved, who can load it, and that a push is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stargate.actors.modeling.weight_sums import read_columns
from stargate.config.run import LoraConfig, TrainerConfig
from tests.integration.naive_trainer import config, load, load_weights, make_examples
from tests.integration.ranks import Ranks
from tests.integration.tiny_model import save_tiny_model

pytestmark = pytest.mark.integration

LORA = LoraConfig(rank=4, alpha=8, save="adapter")
IDS = list(range(1000, 1024))


def settings(**changes: Any) -> TrainerConfig:
    return config(lora=LORA, learning_rate=1e-2, num_epochs=1, **changes)


@pytest.fixture(scope="module")
def start(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads as large as vLLM wants them on a CPU."""
    folder = tmp_path_factory.mktemp("lora") / "start"
    return save_tiny_model(folder, embedded, dtype="bfloat16", head_dim=32)


@pytest.fixture(scope="module")
def trained(one: Ranks, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "m1"
    one.train(settings(dtype="bfloat16"), make_examples(11), start, folder, base_dir=start)
    return folder


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([IDS])).logits[0].float().log_softmax(-1)
    return found


@pytest.mark.parametrize("stage", [2, 3])
def test_the_adapter_loads_in_peft_and_is_the_merged_model(
    one: Ranks, tiny: Path, tmp_path: Path, stage: int
) -> None:
    from peft import PeftModel

    one.train(settings(zero_stage=stage), make_examples(11), tiny, tmp_path / "m1")
    base = logprobs(load(tiny))
    adapted = PeftModel.from_pretrained(load(tiny), tmp_path / "m1" / "adapter")
    merged = logprobs(load(tmp_path / "m1"))
    assert float((merged - base).abs().max()) > 0.1
    assert torch.allclose(logprobs(adapted), merged, atol=1e-4)
    said = json.loads((tmp_path / "m1/adapter/adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(tiny)
    assert (said["r"], said["lora_alpha"]) == (4, 8)
    assert len(load_file(tmp_path / "m1/adapter/adapter_model.safetensors")) == 2 * 2 * 7


def test_without_save_adapter_there_is_none(one: Ranks, tiny: Path, tmp_path: Path) -> None:
    merged = settings().model_copy(update={"lora": LORA.model_copy(update={"save": "merged"})})
    one.train(merged, make_examples(3), tiny, tmp_path / "m1")
    assert not (tmp_path / "m1" / "adapter").exists()


def test_the_columns_to_be_looked_at_are_those_that_have_changed(
    start: Path, trained: Path
) -> None:
    old, new, counts = load_weights(start), load_weights(trained), read_columns(trained)
    adapted = [name for name in new if "proj" in name]
    assert {new[name].shape[1] for name in adapted} == counts.keys()
    for size, found in counts.items():
        changed = [(old[n] != new[n]).any(0) for n in adapted if new[n].shape[1] == size]
        assert torch.equal(found, torch.stack(changed).sum(0))
        assert int(found.max()) == len(changed)  # a column in which all have changed


def test_vllm_reads_the_adapter(trained: Path) -> None:
    """Its own reader, without an engine: every tensor belongs to a layer that it adapts."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    folder = trained / "adapter"
    helper = PEFTHelper.from_local_dir(str(folder), max_position_embeddings=512)
    assert (helper.r, helper.vllm_lora_scaling_factor) == (4, 2.0)
    read = LoRAModel.from_local_checkpoint(
        str(folder), set(helper.target_modules), helper, device="cpu", dtype=torch.float32
    )
    saved = load_file(folder / "adapter_model.safetensors")
    assert len(read.loras) == 2 * 7
    for name, layer in read.loras.items():
        assert layer.scaling == 2.0, name
        for kind, tensor in (("A", layer.lora_a), ("B", layer.lora_b)):
            assert torch.equal(tensor, saved[f"base_model.model.{name}.lora_{kind}.weight"]), name


# Both as in a run, in a process of its own: vLLM leaves threads behind.
_ENGINES = """
import json, os, sys
os.environ.update(VLLM_CPU_OMP_THREADS_BIND="0", VLLM_LOGGING_LEVEL="ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from stargate.actors.engines.spec import EngineSpec, engine_arguments
from stargate.config.run import EngineConfig
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

start, trained = sys.argv[1:]
ids = list(range(1000, 1024))
config = EngineConfig(max_model_len=256, cpu_kv_cache_gb=0.1)

def arguments(model):
    found = engine_arguments(EngineSpec("questioner", model, config))
    found.pop("logits_processors")
    # Our own engines on CPUs ask for logits, of which nucleus.py makes log-probs.
    return found | {"logprobs_mode": "raw_logprobs"}

def answer(engine, **more):
    asked = SamplingParams(temperature=0.0, max_tokens=8, prompt_logprobs=0, logprobs=0)
    [out] = engine.generate({"prompt_token_ids": ids}, asked, use_tqdm=False, **more)
    told = [next(iter(p.values())).logprob for p in out.prompt_logprobs[1:]]
    return [list(out.outputs[0].token_ids), told]

pushed = LLM(**arguments(start))
before = answer(pushed)
worker = pushed.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
worker.start_weight_update()
worker.update_weights({"files": [trained + "/model.safetensors"]})
worker.finish_weight_update()
pushed.reset_prefix_cache()
after = answer(pushed)
del pushed, worker
fresh = answer(LLM(**arguments(trained)))
adapted = LLM(**arguments(start), enable_lora=True, max_lora_rank=8)
request = LoRARequest("m1", 1, trained + "/adapter")
print(json.dumps([before, after, fresh, answer(adapted), answer(adapted, lora_request=request)]))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.engines
def test_a_pushed_engine_is_a_fresh_one_and_vllm_takes_the_adapter(
    start: Path, trained: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ENGINES, str(start), str(trained)],
        capture_output=True,
        text=True,
        timeout=400,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, after, fresh, base, adapted = json.loads(done.stdout.splitlines()[-1])
    assert after == fresh  # tokens and log-probs, to the last bit
    assert before[1] != fresh[1]
    assert base[1] == pytest.approx(before[1], abs=0.02)
    reference = logprobs(load(trained))[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    gaps = {
        name: float((torch.tensor(told[1]) - reference).abs().mean())
        for name, told in (("base", base), ("adapter", adapted), ("merged", fresh))
    }
    print(f"mean distance from the merged model's float32 log-probs: {gaps}")
    assert gaps["adapter"] < 0.3 * gaps["base"]
    assert gaps["merged"] < 0.3 * gaps["base"]
