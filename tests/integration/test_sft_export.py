"""The SFT export, taken up as TRL's trainer does it."""

from pathlib import Path

import pytest

from stargate.data.dataset import open_dataset
from stargate.data.exporters import export_sft
from stargate.resources.models import resolve_model
from stargate.text.prompts import load_prompts

pytestmark = pytest.mark.integration


def test_sft_goes_through_datasets_and_a_chat_template(tmp_path: Path) -> None:
    """What TRL's SFTTrainer does with the column `messages`: load, then apply the template."""
    datasets = pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")
    folder = resolve_model("embedded")
    export_sft(open_dataset("starter"), tmp_path / "sft", load_prompts("paper"))
    files = {split: str(tmp_path / f"sft/{split}.jsonl") for split in ("A", "test")}
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"A": 64, "test": 96}
    assert loaded["A"].column_names == ["messages"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(loaded["A"][0]["messages"], tokenize=False)
    assert "<|im_start|>user\nMy name is Rosa Delgado.\n\nCan you help" in text
    assert "<|im_start|>assistant\nBuild the week" in text
    assert text.rstrip().endswith("before bed.<|im_end|>")
