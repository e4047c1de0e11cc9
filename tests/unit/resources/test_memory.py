"""The arithmetic of memory, by hand where it is short; measured in test_memory_measured.py."""

import pytest

from stargate.config.run import EngineConfig, LoraConfig, ScorerConfig, TrainerConfig
from stargate.resources.machine import GIB
from stargate.resources.memory import (
    cache_token_bytes,
    engine_memory,
    num_trained,
    scorer_memory,
    trainer_memory,
)
from stargate.resources.model_shape import KNOWN, shape_of

MISTRAL = shape_of(KNOWN["mistralai/Mistral-7B-Instruct-v0.2"])
QWEN = shape_of(KNOWN["Qwen/Qwen2.5-0.5B-Instruct"])
MIXTRAL = shape_of(KNOWN["mistralai/Mixtral-8x7B-Instruct-v0.1"])
STATES = ("weights", "gradients", "masters", "moments")


def per_parameter(**settings: object) -> float:
    """Bytes of a rank's states for each parameter of the model."""
    parts = trainer_memory(TrainerConfig.model_validate(settings), QWEN, "cuda").parts
    return sum(parts[name] for name in STATES) / QWEN.parameters


@pytest.mark.parametrize(
    ("stage", "ranks", "bytes_each"),
    [(0, 1, 20), (1, 1, 22), (2, 1, 18), (3, 1, 18), (1, 2, 16), (2, 2, 10), (3, 2, 9)],
)
def test_states_by_stage_and_ranks(stage: int, ranks: int, bytes_each: float) -> None:
    assert per_parameter(zero_stage=stage, num_ranks=ranks) == pytest.approx(bytes_each)


def test_adapters_leave_the_weights_alone() -> None:
    assert per_parameter(lora=LoraConfig(rank=8)) == pytest.approx(2.0, abs=0.3)
    # Of a layer: q and o 896 + 896, k and v 896 + 128, three of the MLP 896 + 4,864.
    wide = 2 * (896 + 896) + 2 * (896 + 128) + 3 * (896 + 4864)
    assert num_trained(TrainerConfig(lora=LoraConfig(rank=8)), QWEN) == 8 * 24 * wide


def test_the_papers_trainer_needs_activation_checkpointing() -> None:
    """What was found with the meta device: 60.7 GiB of states and 24.6 of activations."""
    config = TrainerConfig(zero_stage=3, num_ranks=2, max_length=1024)
    plain = trainer_memory(config, MISTRAL, "cuda")
    assert sum(plain.parts[name] for name in STATES) / GIB == pytest.approx(60.7, abs=0.1)
    assert plain.parts["activations"] / GIB == pytest.approx(24.6, rel=0.03)
    assert plain.needs_gib > 80
    config = config.model_copy(update={"activation_checkpointing": True})
    assert trainer_memory(config, MISTRAL, "cuda").needs_gib < 70


def test_logits_of_a_micro_batch() -> None:
    config = TrainerConfig(micro_batch_size=2, max_length=1000)
    logits = trainer_memory(config, QWEN, "cuda").parts["logits"]
    assert logits == 12 * 2000 * 151936
    config = TrainerConfig(row_tokens=500)
    assert trainer_memory(config, QWEN, "cuda").parts["logits"] == 12 * 500 * 151936


def test_a_scorer_has_embeddings_in_float32() -> None:
    parts = scorer_memory(ScorerConfig(), QWEN, "cuda").parts
    embeddings = 896 * 151936
    assert parts["weights"] == 2 * (QWEN.parameters - embeddings) + 4 * embeddings


def test_the_cache_is_what_the_weights_leave() -> None:
    config = EngineConfig(tensor_parallel_size=2, max_model_len=8192)
    assert cache_token_bytes(config, MIXTRAL) == 2 * 32 * 4 * 128 * 2
    memory = engine_memory(config, MIXTRAL, "cuda", num_seqs=256, gpu_gib=79.6)
    assert memory.parts["weights"] == MIXTRAL.parameters  # half of two bytes each
    assert sum(memory.parts.values()) == pytest.approx(0.85 * 79.6 * GIB)
    small = engine_memory(config, MIXTRAL, "cuda", num_seqs=256, gpu_gib=40.0)
    assert small.parts["KV cache"] < 0
    assert small.needs_gib > 40
