"""Shapes of models as their config.json tells them."""

import json
import struct
from pathlib import Path

import pytest

from stargate.errors import ModelError
from stargate.resources import model_shape
from stargate.resources.model_shape import KNOWN, find_shape, shape_of

# As their makers count them.
PARAMETERS = {
    "embedded": 134_515_008,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_of_known_models(name: str, parameters: int) -> None:
    assert shape_of(KNOWN[name]).parameters == parameters


def test_a_token_passes_its_experts_only() -> None:
    mixtral = shape_of(KNOWN["mistralai/Mixtral-8x7B-Instruct-v0.1"])
    assert (mixtral.experts, mixtral.mlps) == (8, 2)
    assert mixtral.active == 12_879_925_248


def test_the_language_part_of_a_model_that_sees() -> None:
    inner = {key: value for key, value in KNOWN["embedded"].items() if key != "model_type"}
    assert shape_of({"model_type": "gemma3", "text_config": inner}).hidden == 576


def folder(tmp_path: Path, **config: object) -> Path:
    """A folder with one tensor of 2 x 3 numbers."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(24)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text(json.dumps({**KNOWN["embedded"], **config}))
    return tmp_path


def test_a_folder_has_the_parameters_of_its_files(tmp_path: Path) -> None:
    shape = find_shape(str(folder(tmp_path)))
    assert shape is not None
    assert (shape.parameters, shape.layers) == (6, 30)


def test_a_folder_that_does_not_say_a_size(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json does not say 'vocab_size'"):
        made = folder(tmp_path)
        config = {key: value for key, value in KNOWN["embedded"].items() if key != "vocab_size"}
        (made / "config.json").write_text(json.dumps(config))
        find_shape(str(made))


def test_a_model_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find_shape("nobody/knows-it") is None


def test_a_downloaded_model_whose_sizes_are_not_understood_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = folder(tmp_path, num_attention_heads=None) / "config.json"
    monkeypatch.setattr(model_shape, "_cached_config", lambda name, revision: config)
    assert find_shape("somebody/has-it") is None
