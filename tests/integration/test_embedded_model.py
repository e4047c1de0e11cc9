"""The embedded model as it really converts: tokenizer, template, ends, cache. About a minute."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stargate.resources import embedded
from stargate.resources.models import resolve_embedder, resolve_model

pytestmark = pytest.mark.integration

ENSURE = "from stargate.resources.models import resolve_model; print(resolve_model('embedded'))"
# As published with SmolLM2-135M-Instruct.
KNOWN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENSURE],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted after one conversion was killed, by two processes at once."""
    cache = tmp_path_factory.mktemp("cache")
    killed = _start(cache)
    models = cache / "stargate/models"
    deadline = time.monotonic() + 60
    while not list(models.glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(models.glob(".*.tmp")), "the conversion did not start"
    time.sleep(5)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert [file for file in models.iterdir() if file.name[0] != "."] == []

    both = [_start(cache), _start(cache)]
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    notices = "".join(errors for _, errors in outputs)
    assert notices.count("converting the embedded model for this user") == 1
    assert list(models.glob(".*.tmp")) == []
    return Path(outputs[0][0].strip())


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_the_cached_folder_is_whole_and_reused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embedded.folder_problem(folder, full=True) is None
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"]["sha256"] == embedded.SMOLLM2.sha256
    assert manifest["files"]["model.safetensors"]["size"] > 2 * 134_515_008
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parents[2]))
    started = time.monotonic()
    assert resolve_model("embedded") == folder
    assert time.monotonic() - started < 1.0
    assert resolve_model(str(folder)) == folder


def test_ends_and_special_tokens(folder: Path, tokenizer: Any) -> None:
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert tokenizer.pad_token_id == 2
    assert tokenizer.model_max_length == 8192
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == 2
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "bfloat16"


def test_chat_template_is_the_published_one(tokenizer: Any) -> None:
    assert tokenizer.chat_template == KNOWN_TEMPLATE
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )


def test_literal_token_ids(tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    # Digits stand alone, and two newlines before one stay a single token, as in training.
    assert ids("\n\n1. 2024") == [1116, 33, 30, 216, 34, 32, 34, 36]
    assert ids("<|im_start|>user\n")[0] == 1
    assert ids("ok<|im_end|>")[-1] == 2
    assert tokenizer.decode(ids("ok<|im_end|>"), skip_special_tokens=True) == "ok"


def test_the_weights_answer(folder: Path, tokenizer: Any) -> None:
    """A permuted head or a wrong scale would not know the capital of France."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(_num_threads())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    answer = output[prompt["input_ids"].shape[1] :].tolist()
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == 2, "generation ended at <|im_end|>, not at the length limit"


def _num_threads() -> int:
    return len(os.sched_getaffinity(0))


def test_embedder_puts_the_answering_fact_nearest() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    where = resolve_embedder()
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = AutoModel.from_pretrained(where)
    texts = [
        "What is your budget?",
        "I can spend at most 300 euros.",
        "I have a dog called Bello.",
        "I am allergic to peanuts.",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = (hidden * mask).sum(1) / mask.sum(1)
    vectors = torch.nn.functional.normalize(means, dim=-1)
    cosines = (vectors[1:] @ vectors[0]).tolist()
    assert cosines[0] == max(cosines)
    assert cosines[0] > 0.15 > cosines[1]
