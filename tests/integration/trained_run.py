"""A run directory with a tiny m_1, as training leaves it."""

import json
from pathlib import Path

from stargate.config.files import dump_config
from stargate.config.roleplayer import FactsGrounding
from stargate.config.run import (
    EngineConfig,
    EngineRoleplayerConfig,
    QuestionerConfig,
    ResponseConfig,
    RunConfig,
    SamplingConfig,
)
from tests.fakes.report_values import eval_json
from tests.integration.tiny_model import save_tiny_model


def save_trained_run(root: Path, embedded: Path, hidden_size: int = 32, head_dim: int = 8) -> Path:
    """m_0 and m_1 are random; only their owner may read the weights. Returns `root`."""
    place = root.parent / f"{root.name}-base"
    base = save_tiny_model(place, embedded, seed=1, hidden_size=hidden_size, head_dim=head_dim)
    config = RunConfig(
        name="tiny",
        model="embedded",
        prompts="small",
        device="cpu",
        questioner=QuestionerConfig(
            sampling=SamplingConfig(temperature=0.7, top_p=0.8, max_new_tokens=8),
            engine=EngineConfig(max_model_len=512, max_num_seqs=4, cpu_kv_cache_gb=0.1),
        ),
        roleplayer=EngineRoleplayerConfig(
            model=str(base), grounding=FactsGrounding(voice="fact", min_similarity=0.0)
        ),
        response=ResponseConfig(sampling=SamplingConfig(max_new_tokens=12)),
    )
    (root / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (root / "eval.json").write_text(json.dumps(eval_json([0, 1], "user")), encoding="utf-8")
    (root / "environment.json").write_text('{"packages": {"vllm": "0.32.0"}}', encoding="utf-8")
    place = root / "models" / "m1"
    folder = save_tiny_model(place, embedded, hidden_size=hidden_size, head_dim=head_dim)
    (folder / "model.safetensors").chmod(0o600)
    (folder / "weight-sums.json").write_text("{}", encoding="utf-8")
    return root
