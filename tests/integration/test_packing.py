"""Packed rows against the same examples one by one: losses, gradients, and no leak between them."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from stargate.actors.modeling.model import SelectedLogits, load_model, token_losses
from stargate.actors.training import packing
from stargate.actors.training.batches import make_batch
from stargate.actors.training.packing import attend_in_blocks, make_packable
from stargate.types import TrainingExample
from tests.integration.tiny_model import save_gemma3_model, save_sink_model, save_windowed_model

pytestmark = pytest.mark.integration


def make_example(number: int, length: int) -> TrainingExample:
    draw = random.Random(number)
    ids = tuple(draw.randrange(3, 49152) for _ in range(length))
    learned = {length - 1, *(k for k in range(1, length) if draw.random() < 0.5)}
    mask = tuple(int(k in learned) for k in range(length))
    return TrainingExample(f"p{number}", f"d{number}", ids, mask, "")


EXAMPLES = [make_example(number, length) for number, length in enumerate((40, 7, 23, 2))]


class Losses:
    """A model with the trainer's own forward pass, packed or padded."""

    def __init__(self, folder: Path, packed: bool) -> None:
        self.model = load_model(str(folder), None, "cpu", False)
        if packed:
            assert make_packable(self.model) is None
        self._packed = packed
        self._logits = SelectedLogits(self.model)

    def __call__(self, examples: list[TrainingExample]) -> list[Any]:
        """The loss of each token to learn, per example; gradients flow."""
        batch = make_batch(examples, self._packed, torch.device("cpu"))
        logits, _ = self._logits(batch.rows, batch.columns, use_cache=False, **batch.inputs)
        losses = token_losses(logits, batch.targets)
        return [losses[batch.owners == number] for number in range(len(examples))]

    def gradients(self, groups: list[list[TrainingExample]]) -> dict[str, Any]:
        """Of the summed loss of all groups, each in a forward pass of its own."""
        self.model.zero_grad()
        for group in groups:
            sum(loss.sum() for loss in self(group)).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters()}


def check_packed_is_single(folder: Path, examples: list[TrainingExample]) -> None:
    packed, single = Losses(folder, packed=True), Losses(folder, packed=False)
    with torch.no_grad():
        together = packed(examples)
        alone = [single([example])[0] for example in examples]
    for got, expected in zip(together, alone, strict=True):
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) < 2e-5
    got_all = packed.gradients([examples])
    expected_all = single.gradients([[example] for example in examples])
    for name, expected in expected_all.items():
        largest = float(expected.abs().max())
        assert largest > 0
        assert float((got_all[name] - expected).abs().max()) < 1e-5 * largest, name


def test_packed_losses_and_gradients_equal_those_of_single_examples(tiny: Path) -> None:
    check_packed_is_single(tiny, EXAMPLES)


@pytest.mark.parametrize("save", [save_windowed_model, save_gemma3_model])
def test_layers_with_windows_look_as_far_back_in_a_packed_row(
    tmp_path: Path, embedded: Path, save: Any
) -> None:
    """Windows of 4 and 16 tokens, of all layers and of two in three."""
    check_packed_is_single(save(tmp_path / "model", embedded), [*EXAMPLES, make_example(9, 300)])


def test_an_example_does_not_see_its_neighbours(tiny: Path) -> None:
    """Its losses stay the same to the bit when the examples beside it are others."""
    packed = Losses(tiny, packed=True)
    other = [make_example(number + 100, len(e.input_ids)) for number, e in enumerate(EXAMPLES)]
    with torch.no_grad():
        before = packed(EXAMPLES)
        for number in range(len(EXAMPLES)):
            row = [*other[:number], EXAMPLES[number], *other[number + 1 :]]
            assert torch.equal(packed(row)[number], before[number])
            if number != 1:
                assert not torch.equal(packed(row)[1][:2], before[1][:2])


def test_gradients_do_not_flow_into_neighbours(tiny: Path) -> None:
    """The loss of one example moves the embeddings of its own tokens only."""
    packed = Losses(tiny, packed=True)
    # With tied embeddings the output layer moves all rows: look at the inputs themselves.
    seen: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        output.retain_grad()
        seen.append(output)

    handle = packed.model.get_input_embeddings().register_forward_hook(keep)
    packed(EXAMPLES)[1].sum().backward()
    handle.remove()
    moved = seen[0].grad[0].abs().sum(-1) > 0
    expected = torch.zeros_like(moved)
    expected[40:46] = True  # the second example's tokens but the last, which predicts nothing
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("window", [None, 5, 130])
@pytest.mark.parametrize("length", [1, 128, 129, 300])
def test_attention_in_blocks_equals_torchs_own(length: int, window: int | None) -> None:
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if window is not None:
        seen.triu_(1 - window)
    torch.manual_seed(length)
    query, key, value = (torch.randn(1, heads, length, 16) for heads in (6, 2, 2))
    outside = torch.randn(1, length, 6, 16)
    results = []
    for own in (True, False):
        q, k, v = (t.clone().requires_grad_() for t in (query, key, value))
        if own:
            out = attend_in_blocks(q, k, v, 0.3, window)
        else:
            repeated = (t.repeat_interleave(3, 1) for t in (k, v))
            out = functional.scaled_dot_product_attention(
                q, *repeated, attn_mask=seen, scale=0.3
            ).transpose(1, 2)
        (out * outside).sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) < 2e-5


def test_packed_bfloat16_is_as_exact_as_single_examples(tiny: Path) -> None:
    """Against float32: the packed gradients' error is no larger than that of unpacked ones."""
    long = [*EXAMPLES, make_example(9, 300)]
    exact = Losses(tiny, packed=False).gradients([[example] for example in long])
    errors = []
    for packed in (True, False):
        losses = Losses(tiny, packed)
        losses.model.to(torch.bfloat16)
        found = losses.gradients([long] if packed else [[example] for example in long])
        gap = sum(float((found[n].float() - exact[n]).square().sum()) for n in exact)
        errors.append((gap / sum(float(g.square().sum()) for g in exact.values())) ** 0.5)
    print(f"bfloat16 gradients: packed {errors[0]:.4f} from float32, unpacked {errors[1]:.4f}")
    assert errors[0] < 1.1 * errors[1]


def save_recurrent_model(folder: Path, embedded: Path) -> Path:
    """A random two-layer Mamba: its state runs on from example to example."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4)
    model: Any = MambaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("save", [save_sink_model, save_recurrent_model])
def test_models_that_can_not_be_packed_say_so_and_stay_as_they_were(
    tmp_path: Path, embedded: Path, save: Any
) -> None:
    model = load_model(str(save(tmp_path / "model", embedded)), None, "cpu", False)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        assert make_packable(model)
        assert torch.equal(model(ids, use_cache=False).logits, before)


def test_a_leak_is_found_by_trying(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over the whole row, as of a model that ignores what it is told."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    model = load_model(str(tiny), None, "cpu", False)
    monkeypatch.setattr(packing, "_attention", sdpa_attention_forward)
    problem = packing.make_packable(model)
    assert problem is not None
    assert "logits differ by" in problem
    assert model.config._attn_implementation == "sdpa"


def test_a_window_that_is_not_honoured_is_found_by_trying(
    tmp_path: Path, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial's texts are shorter than the window, as they are for real models."""
    folder = save_windowed_model(tmp_path / "model", embedded, window=400)
    model = load_model(str(folder), None, "cpu", False)
    attention = packing._attention
    monkeypatch.setattr(
        packing,
        "_attention",
        lambda *args, **others: attention(*args, **others | {"sliding_window": None}),
    )
    assert "logits differ by" in str(packing.make_packable(model))
    assert model.config.sliding_window == 400
    monkeypatch.undo()
    assert packing.make_packable(model) is None
    assert model.config.sliding_window == 400
