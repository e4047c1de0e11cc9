"""The tokenizers that other tests take from the registry: what they are, as literal values."""

import pytest
from transformers import AutoTokenizer

from tests.public_tokenizers import public_tokenizer

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("family", "ids", "end", "num_ids"),
    [
        ("qwen3", [9707, 1879], "<|im_end|>", 151669),
        ("gemma3", [9259, 1902], "<end_of_turn>", 262145),
        ("llama3_1", [9906, 1917], "<|eot_id|>", 128256),
        ("gptoss", [13225, 2375], "<|return|>", 200019),
    ],
)
def test_a_familys_tokenizer(family: str, ids: list[int], end: str, num_ids: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(public_tokenizer(family))
    assert tokenizer.encode("Hello world", add_special_tokens=False) == ids
    assert (tokenizer.eos_token, len(tokenizer)) == (end, num_ids)
