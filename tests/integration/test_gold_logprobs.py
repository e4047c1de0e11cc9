"""Log-probs of golds part by part: how exact they are, and what they take."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from stargate.actors.modeling.model import load_model
from stargate.actors.scoring.gold_logprobs import RoundedLinear
from stargate.actors.scoring.gold_model import GoldModel
from stargate.config.run import ScorerConfig
from stargate.resources.memory import SCORER_LOGIT_BYTES
from stargate.types import ScoreRequest
from tests.integration.tiny_model import save_gemma3_model, save_qwen3_model, save_tiny_model

pytestmark = pytest.mark.integration


def test_rounded_logits_are_exact_where_log_probs_depend_on_them(tiny: Path) -> None:
    """The target's logit and the largest one, to float32; the others to bfloat16's 0.4 %."""
    ids, targets = torch.arange(100, 150)[None], torch.arange(1000, 1040)
    model = load_model(str(tiny), torch.float32, "cpu", False)
    with torch.inference_mode():
        exact = model(input_ids=ids).logits[0, 5:45]
        hidden = model.base_model(input_ids=ids).last_hidden_state[0, 5:45]
        rounded = RoundedLinear(model.lm_head)
        rounded.targets = targets
        found = rounded.logits(hidden)
    assert found.dtype == torch.float32
    largest = exact.argmax(1)
    for wanted in (largest, targets):
        torch.testing.assert_close(
            found.gather(1, wanted[:, None]), exact.gather(1, wanted[:, None]), rtol=1e-5, atol=1e-5
        )
    difference = (found - exact).abs()
    assert 0.001 < difference.max() < 0.02 * exact.abs().max()

    # What a score is made of.
    def logprobs(logits: torch.Tensor) -> torch.Tensor:
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)

    error = (logprobs(found) - logprobs(exact)).abs()
    simply_rounded = (logprobs(exact.bfloat16().float()) - logprobs(exact)).abs()
    assert error.max() < 0.005
    assert error.mean() < 0.5 * simply_rounded.mean()


def test_a_large_vocabulary_neither_splits_a_pass_nor_fills_the_memory(
    tmp_path: Path, embedded: Path
) -> None:
    """2,400 scored positions have 1.5 GB of logits over 151,936 tokens: they are never there."""

    class Largest(TorchDispatchMode):
        num_elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                self.num_elements = max(self.num_elements, made.numel())
            return made

    folder = save_qwen3_model(tmp_path / "qwen3", embedded)
    model = GoldModel(
        str(folder), ScorerConfig(max_batch_tokens=4096, dtype="float32"), "cpu", False
    )
    opening = tuple(range(900, 1000))
    asked = [
        ScoreRequest(f"d{d}", (*opening, *(d * 10 + k for k in range(40))), golds)
        for d, golds in enumerate([tuple((g, *range(300, 379)) for g in range(3))] * 10)
    ]
    [batch] = model.batches(asked)
    with Largest() as largest:
        scored = model.score([asked[i] for i in batch])
    assert scored.num_tokens == 100 + 10 * (40 + 3 * 79)
    assert 4 * largest.num_elements <= SCORER_LOGIT_BYTES
    # Each as it is alone, one sequence at a time.
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for place, request in ((0, asked[batch[0]]), (-1, asked[batch[-1]])):
        ids = torch.tensor([[*request.context_ids, *request.golds[2]]])
        with torch.inference_mode():
            logits = reference(ids, use_cache=False).logits[0, len(request.context_ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(request.golds[2])[:, None])[:, 0]
        assert scored.logprobs[place][2] == pytest.approx(expected.tolist(), abs=0.001)


def mapped_bytes(tensors: list[torch.Tensor], file: Path) -> tuple[int, int]:
    """Bytes of tensors that are pages of a file, and all."""
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(file))
    ]
    sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    mapped = sum(
        size for at, size in sizes.items() if any(low <= at < high for low, high in ranges)
    )
    return mapped, sum(sizes.values())


def test_scorers_of_a_machine_share_the_files_pages(tmp_path: Path, embedded: Path) -> None:
    """All weights but the norms: no scorer has a copy of its own."""
    folder = save_qwen3_model(tmp_path / "qwen3", embedded, dtype="bfloat16")
    model = GoldModel(str(folder), ScorerConfig(dtype="bfloat16"), "cpu", False)
    inner = model._logprobs.model
    held = [
        value
        for module in inner.modules()
        for value in (*module._parameters.values(), *vars(module).values())
        if isinstance(value, torch.Tensor)
    ]
    mapped, total = mapped_bytes(held, folder / "model.safetensors")
    assert total >= (folder / "model.safetensors").stat().st_size - 10_000
    assert mapped > 0.99 * total


@pytest.mark.parametrize("save", [save_qwen3_model, save_gemma3_model, save_tiny_model])
def test_weights_that_stay_in_bfloat16_score_as_their_float32_copies(
    tmp_path: Path, embedded: Path, save: Any
) -> None:
    """To the bit: a checkpoint with the same values in float32 has its embeddings in float32."""
    stored = save(tmp_path / "bfloat16", embedded, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(stored, dtype="auto").float()
    copied = tmp_path / "float32"
    model.save_pretrained(copied)
    asked = [ScoreRequest("a", tuple(range(10, 60)), (tuple(range(80, 120)), (5, 6, 7)))]
    config = ScorerConfig(dtype="bfloat16")
    one, other = (
        GoldModel(str(folder), config, "cpu", False).score(asked).logprobs
        for folder in (stored, copied)
    )
    if save is save_gemma3_model:  # its scale of the embeddings is rounded with the weights
        assert one[0][0] == pytest.approx(other[0][0], abs=0.3)
    else:
        assert one == other
