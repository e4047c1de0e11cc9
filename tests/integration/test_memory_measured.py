"""The computed memory of trainer and scorer against what torch allocates, within 15 %."""

from pathlib import Path
from typing import Any

import pytest

from stargate.config.run import LoraConfig, ScorerConfig
from tests.integration.measured_memory import Case, in_a_process, on_all_ranks, save_model, score

pytestmark = pytest.mark.integration


def sizes(
    hidden: int, layers: int, heads: int, kv: int, mlp: int, vocabulary: int, tied: bool = True
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


DEEP = sizes(128, 6, 4, 4, 352, 1000)
GROUPED = sizes(128, 4, 8, 2, 352, 4000, tied=False)
WORDY = sizes(96, 2, 3, 3, 256, 8000)
HALF = {"dtype": "bfloat16"}
FULL = {"dtype": "float32"}
CHECKPOINTED = {"activation_checkpointing": True}
STATES = sizes(256, 8, 4, 4, 704, 1000)
CASES = {
    **{f"states, ZeRO-{n}": Case(1, 32, HALF | {"zero_stage": n}, STATES) for n in range(4)},
    "states, float32": Case(1, 32, FULL, STATES),
    "row": Case(1, 1100, HALF, DEEP),
    "row, checkpointed": Case(1, 1100, HALF | CHECKPOINTED, DEEP),
    "row, ZeRO-0": Case(1, 1100, HALF | {"zero_stage": 0}, DEEP),
    "row, LoRA": Case(1, 1100, HALF | {"lora": LoraConfig(rank=8)}, DEEP),
    "grouped, ZeRO-3": Case(1, 1100, HALF | {"zero_stage": 3}, GROUPED),
    "packed, float32": Case(4, 200, FULL, GROUPED),
    "padded, float32": Case(4, 200, FULL | {"packing": False}, GROUPED),
    "packed, short": Case(4, 250, HALF, DEEP),
    "logits": Case(2, 300, FULL, WORDY),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    folder = tmp_path_factory.mktemp("models")
    return dict(zip(CASES, on_all_ranks(folder, list(CASES.values())), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_trainer(measured: dict[str, tuple[float, float]], name: str) -> None:
    got, computed = measured[name]
    print(f"{name}: {got / 2**20:.1f} MiB allocated, {computed / 2**20:.1f} computed")
    assert computed == pytest.approx(got, rel=0.15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_scorer(tmp_path: Path, dtype: Any) -> None:
    save_model(tmp_path, dtype, **sizes(256, 6, 4, 4, 704, 8000))
    config = ScorerConfig(dtype=dtype, max_batch_tokens=2000)
    got, computed = in_a_process(score, tmp_path, config, 4)
    print(f"{dtype}: {got / 2**20:.1f} MiB allocated, {computed / 2**20:.1f} computed")
    assert computed == pytest.approx(got, rel=0.15)
