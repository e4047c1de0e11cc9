"""The trainer: DeepSpeed on one and two ranks, against a naive float32 loop on whole sequences."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.actors.training.stage import check_examples
from stargate.actors.training.step_plan import split_validation
from stargate.errors import DataError, DivergenceError, EngineError, MachineError
from stargate.records.model_folder import check_model_folder
from stargate.types import TrainingExample, TrainResult
from tests.integration.naive_trainer import (
    config,
    furthest,
    load,
    load_weights,
    make_examples,
    mean_loss,
    naive_training,
    weights_of,
)
from tests.integration.ranks import Ranks
from tests.integration.tiny_model import damage, save_tiny_model

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def naive(tiny: Path) -> tuple[list[float], list[float], dict[str, Any]]:
    model = load(tiny)
    losses, norms = naive_training(model, make_examples(11), config())
    return losses, norms, weights_of(model)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        *((stage, {}) for stage in (0, 1, 2, 3)),
        *((stage, {"packing": False}) for stage in (0, 2, 3)),
        *((stage, {"activation_checkpointing": True}) for stage in (0, 2, 3)),
    ],
)
def test_every_stage_equals_the_naive_loop(
    one: Ranks, tiny: Path, tmp_path: Path, naive: Any, stage: int, changes: dict[str, Any]
) -> None:
    losses, norms, weights = naive
    settings = config(zero_stage=stage, **changes)
    (result,) = one.train(settings, make_examples(11), tiny, tmp_path / "m1")
    assert len(result.losses) == 6  # 4 + 4 + 3 examples, twice: the last batch is not dropped
    assert result.losses == pytest.approx(losses, abs=1e-4)
    assert result.grad_norms == pytest.approx(norms, rel=1e-3)
    gap = furthest(load_weights(tmp_path / "m1"), weights)
    moved = furthest(weights, load_weights(tiny))
    print(f"ZeRO-{stage}: weights moved {moved:.5f}, furthest from the naive loop {gap:.7f}")
    assert gap < 0.01 * moved


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_trains_in_bfloat16(
    one: Ranks, embedded: Path, tmp_path: Path, naive: Any, stage: int
) -> None:
    import torch

    start = save_tiny_model(tmp_path / "tiny", embedded, dtype="bfloat16")
    settings = config(zero_stage=stage, dtype="bfloat16")
    (result,) = one.train(settings, make_examples(11), start, tmp_path / "m1", base_dir=start)
    gap = max(abs(a - b) for a, b in zip(result.losses, naive[0], strict=True))
    print(f"ZeRO-{stage} bfloat16: loss {gap:.4f} nats from the float32 loop at most")
    assert gap < 0.05
    saved = load_weights(tmp_path / "m1")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("stage", "count", "packing"),
    [(2, 11, True), (3, 11, True), (2, 1, True), (3, 1, True), (2, 11, False), (3, 1, False)],
)
def test_two_ranks_do_what_one_does(
    one: Ranks, two: Ranks, tiny: Path, tmp_path: Path, stage: int, count: int, packing: bool
) -> None:
    """11 examples leave the ranks with unequal shares; with 1, rank 1 has nothing at all to do."""
    changes: dict[str, Any] = {"zero_stage": stage, "packing": packing}
    settings = config(num_ranks=1, **changes)
    (alone,) = one.train(settings, make_examples(count), tiny, tmp_path / "alone")
    settings = config(num_ranks=2, **changes)
    both = two.train(settings, make_examples(count), tiny, tmp_path / "both")
    for result in both:
        assert result.losses == pytest.approx(alone.losses, abs=1e-5)
        assert result.grad_norms == pytest.approx(alone.grad_norms, rel=1e-4)
        assert result.learning_rates == alone.learning_rates
        assert (result.num_tokens, result.num_loss_tokens) == (
            alone.num_tokens,
            alone.num_loss_tokens,
        )
    moved = furthest(load_weights(tmp_path / "alone"), load_weights(tiny))
    gap = furthest(load_weights(tmp_path / "both"), load_weights(tmp_path / "alone"))
    print(f"ZeRO-{stage}, {count} examples: moved {moved:.5f}, two ranks from one {gap:.7f}")
    assert gap < 0.01 * moved


@pytest.mark.parametrize(
    "changes", [{"packing": False, "micro_batch_size": 4}, {"row_tokens": 999}, {"row_tokens": 1}]
)
def test_micro_batches_do_not_change_what_is_learned(
    one: Ranks, tiny: Path, tmp_path: Path, naive: Any, changes: dict[str, Any]
) -> None:
    """The same batch in one pass and in four: no mean of means."""
    (result,) = one.train(config(**changes), make_examples(11), tiny, tmp_path / "m1")
    assert result.losses == pytest.approx(naive[0], abs=1e-4)
    assert result.grad_norms == pytest.approx(naive[1], rel=1e-3)


def test_loss_falls_on_few_examples_and_the_result_says_what_was_done(
    one: Ranks, tiny: Path, tmp_path: Path
) -> None:
    examples = make_examples(12)
    settings = config(num_epochs=8, learning_rate=1e-2, validation_fraction=0.2)
    (result,) = one.train(settings, examples, tiny, tmp_path / "m1")
    assert result.losses[-1] < 0.7 * result.losses[0]
    split = split_validation([e.pair_id for e in examples], 0.2, seed=0)
    assert len(split.validation) == 2
    trained = [examples[i] for i in split.train]
    assert result.num_examples == 10
    assert result.num_tokens == 8 * sum(len(e.input_ids) for e in trained)
    assert result.num_loss_tokens == 8 * sum(e.num_loss_tokens for e in trained)
    assert result.validation_loss is not None and math.isfinite(result.validation_loss)
    # Random texts teach nothing about other random texts.
    assert result.validation_loss > result.losses[-1]
    assert result.model_dir == str(tmp_path / "m1")


@pytest.mark.parametrize(("dtype", "stage"), [("float32", 2), ("bfloat16", 2), ("bfloat16", 3)])
def test_validation_loss_is_the_saved_models(
    one: Ranks, embedded: Path, tmp_path: Path, dtype: str, stage: int
) -> None:
    start = save_tiny_model(tmp_path / "start", embedded, dtype=dtype)
    examples = make_examples(12)
    settings = config(validation_fraction=0.2, dtype=dtype, zero_stage=stage)
    (result,) = one.train(settings, examples, start, tmp_path / "m1", base_dir=start)
    held = [examples[i] for i in split_validation([e.pair_id for e in examples], 0.2, 0).validation]
    # A first step on the saved model, over the same examples, has their loss before the update.
    again = config(num_epochs=1, batch_size=2, dtype=dtype)
    (check,) = one.train(again, held, tmp_path / "m1", tmp_path / "unused", base_dir=start)
    assert result.validation_loss == pytest.approx(check.losses[0], abs=1e-4)


def test_the_order_of_the_examples_does_not_matter(one: Ranks, tiny: Path, tmp_path: Path) -> None:
    examples = make_examples(7)
    (first,) = one.train(config(), examples, tiny, tmp_path / "a")
    (second,) = one.train(config(), examples[::-1], tiny, tmp_path / "b")
    assert first.losses == second.losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_small_updates_are_not_lost_in_bfloat16(
    one: Ranks, embedded: Path, tmp_path: Path, stage: int
) -> None:
    """Most weights move by less than a bfloat16 can show; what is saved has learned anyway."""
    start = save_tiny_model(tmp_path / "start", embedded, dtype="bfloat16")
    examples = make_examples(8)
    settings = config(num_epochs=12, learning_rate=2e-5, weight_decay=0.0, dtype="bfloat16")
    settings = settings.model_copy(update={"zero_stage": stage})
    model = load(start)
    naive_training(model, examples, settings)
    exact = weights_of(model)
    one.train(settings, examples, start, tmp_path / "m1", base_dir=start)
    base, saved = load_weights(start), load_weights(tmp_path / "m1")
    kept = projected = moved = 0.0
    for name in base:
        wanted, got = exact[name] - base[name].float(), (saved[name] - base[name]).float()
        to_nearest = exact[name].to(base[name].dtype).float() - base[name].float()
        kept += float((wanted * got).sum())
        projected += float((wanted * to_nearest).sum())
        moved += float((wanted * wanted).sum())
    print(
        f"ZeRO-{stage}: {kept / moved:.2f} of the update saved, {projected / moved:.2f} to nearest"
    )
    assert projected / moved < 0.8
    assert kept / moved == pytest.approx(1.0, abs=0.15)


def test_nan_stops_training_by_name_and_saves_nothing(
    one: Ranks, two: Ranks, tiny: Path, embedded: Path, tmp_path: Path
) -> None:
    examples = make_examples(6, vocabulary=4000)
    poisoned = (*examples[4].input_ids[:-1], 4000)
    mask = (*examples[4].weights[:-1], 1)
    examples[4] = TrainingExample("p04", "d04", poisoned, mask, "")
    start = save_tiny_model(tmp_path / "damaged", embedded, tied=True)
    damage(start, token=4000)
    for ranks, num_ranks in ((one, 1), (two, 2)):
        with pytest.raises(DivergenceError) as failure:
            ranks.train(config(num_ranks=num_ranks), examples, start, tmp_path / "m1")
        assert "training m_1, step 1 of 4: the loss is nan" in str(failure.value)
        assert "nothing was saved" in str(failure.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]
    # The ranks live on and train the next time.
    (result,) = one.train(config(), make_examples(3), tiny, tmp_path / "m2")
    assert math.isfinite(result.losses[0])


def test_the_saved_folder_is_a_whole_model(one: Ranks, tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from stargate.actors.modeling.weight_sums import read_sums, tensor_sum

    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / "stale.json").write_text("{}")
    one.train(config(), make_examples(3), tiny, tmp_path / "m1")
    check_model_folder(tmp_path / "m1")
    assert sorted(file.name for file in (tmp_path / "m1").iterdir()) == sorted(
        [*(file.name for file in tiny.iterdir()), "weight-sums.json"]
    )
    # What it says of the saved tensors is what a reader of the file finds.
    assert read_sums(tmp_path / "m1") == {
        name: tensor_sum(tensor)
        for name, tensor in load_file(tmp_path / "m1" / "model.safetensors").items()
    }
    for name in ("config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "m1" / name).read_bytes() == (tiny / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m1")
    assert (
        tokenizer("Hello there").input_ids
        == AutoTokenizer.from_pretrained(tiny)("Hello there").input_ids
    )
    assert json.loads((tmp_path / "m1" / "config.json").read_text())["dtype"] == "float32"
    assert [path.name for path in tmp_path.iterdir()] == ["m1"]


def test_a_folder_that_can_not_be_written_is_one_clear_line(
    two: Ranks, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="can't save the model"):
        two.train(config(num_ranks=2), make_examples(3), tiny, tmp_path / "file" / "m1")


def test_embedded_model_first_loss_equals_the_reference(
    one: Ranks, embedded: Path, tmp_path: Path
) -> None:
    """On real chat text, in both precisions; the second stage starts from the saved first."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded)
    prompt = "<|im_start|>user\nHow do I start running?<|im_end|>\n<|im_start|>assistant\n"
    replies = ("Do you have any injuries?<|im_end|>", "How much time do you have?<|im_end|>")
    examples = []
    for number, reply in enumerate(replies):
        context, own = tokenizer(prompt)["input_ids"], tokenizer(reply)["input_ids"]
        mask = (0,) * len(context) + (1,) * len(own)
        examples.append(TrainingExample(f"p{number}", f"d{number}", (*context, *own), mask, reply))
    with torch.no_grad():
        expected = float(mean_loss(load(embedded), examples))
    threads = min(2, os.cpu_count() or 1)
    results: dict[str, TrainResult] = {}
    for dtype, start in (("float32", embedded), ("bfloat16", tmp_path / "float32")):
        settings = config(dtype=dtype, learning_rate=5e-5, num_epochs=2, batch_size=2)
        (results[dtype],) = one.train(
            settings, examples, start, tmp_path / dtype, base_dir=embedded, num_threads=threads
        )
    assert results["float32"].losses[0] == pytest.approx(expected, abs=1e-3)
    assert results["float32"].losses[1] < results["float32"].losses[0]
    assert results["bfloat16"].losses[0] < results["float32"].losses[1]


def test_examples_that_can_not_be_trained_on_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="there is no example to train on"):
        check_examples([], 10)
    with pytest.raises(DataError, match="d1 of pair p1: 11 tokens, trainer"):
        check_examples([TrainingExample("p1", "d1", (5,) * 11, (0, *(1,) * 10), "")], 10)
    with pytest.raises(
        DataError, match="d2 of pair p2: no token has a weight, so there is nothing"
    ):
        check_examples([TrainingExample("p2", "d2", (5, 6), (0, 0), "")], 10)
    with pytest.raises(DataError, match="d3 of pair p3: nothing predicts the first token"):
        check_examples([TrainingExample("p3", "d3", (5, 6), (1, 1), "")], 10)


def test_training_before_the_start_is_refused() -> None:
    import asyncio

    rank = TrainerRank(TrainerSpec("nowhere", config()))
    assert rank.progress().total_steps == 0
    with pytest.raises(EngineError, match="before start"):
        asyncio.run(rank.train([], "nowhere", "nowhere", 1))


def test_rounding_is_right_on_average() -> None:
    import torch

    from stargate.actors.modeling.model import round_unbiased

    generator = torch.Generator().manual_seed(0)
    # Between 1 and the next bfloat16, 1 + 2^-7: a quarter of the way, exactly on 1, and below -1.
    for value, low, high, mean in (
        (1 + 2**-9, 1.0, 1 + 2**-7, 1 + 2**-9),
        (-1 - 2**-9, -1 - 2**-7, -1.0, -1 - 2**-9),
        (1.0, 1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0, 0.0),
    ):
        rounded = round_unbiased(torch.full((40_000,), value), torch.bfloat16, generator).float()
        assert set(rounded.tolist()) == {low, high}
        assert float(rounded.double().mean()) == pytest.approx(mean, abs=1e-4)
    same = torch.tensor([1 + 2**-9])
    assert round_unbiased(same, torch.float32, generator) is same
