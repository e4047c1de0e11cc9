"""What the trainer can also do, and when it refuses to go on: LoRA, gradient norms that explode."""

import multiprocessing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.actors.training.stage import norm_problem
from stargate.actors.training.step_plan import Layout, plan_steps, split_validation
from stargate.config.run import LoraConfig, TrainerConfig
from stargate.errors import ConfigError, DivergenceError
from stargate.records.model_folder import check_model_folder
from stargate.resources.machine import free_port
from stargate.types import TrainingExample
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
from tests.integration.tiny_model import save_sink_model, save_tiny_model

pytestmark = pytest.mark.integration

# A token whose embedding is almost zero: the first norm layer makes its gradient huge.
_STEEP = 4000


def naive_lora(
    folder: Path, examples: list[TrainingExample], settings: TrainerConfig
) -> tuple[list[float], dict[str, Any]]:
    """Losses and merged weights of peft's own model in a plain float32 loop."""
    import peft
    import torch

    assert settings.lora is not None
    torch.manual_seed(0)
    model: Any = peft.get_peft_model(
        load(folder),
        peft.LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=list(settings.lora.target_modules) or "all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    losses, _ = naive_training(model, examples, settings)
    return losses, weights_of(model.merge_and_unload())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
def test_lora_equals_peft_in_a_naive_loop(
    one: Ranks, tiny: Path, tmp_path: Path, stage: int, targets: tuple[str, ...]
) -> None:
    lora = LoraConfig(rank=4, alpha=8, target_modules=targets)
    settings = config(zero_stage=stage, lora=lora, learning_rate=1e-2)
    losses, weights = naive_lora(tiny, make_examples(11), settings)
    (result,) = one.train(settings, make_examples(11), tiny, tmp_path / "m1")
    assert result.losses == pytest.approx(losses, abs=1e-4)
    saved, start = load_weights(tmp_path / "m1"), load_weights(tiny)
    moved, gap = furthest(weights, start), furthest(saved, weights)
    print(f"ZeRO-{stage}: weights moved {moved:.5f}, furthest from peft {gap:.7f}")
    assert gap < 0.01 * moved
    for name, tensor in saved.items():
        adapted = "proj" in name and (not targets or name.split(".")[-2] in targets)
        assert bool((tensor == start[name]).all()) is not adapted, name


def test_what_lora_saves_is_a_plain_model(one: Ranks, tiny: Path, tmp_path: Path) -> None:
    settings = config(lora=LoraConfig(rank=4), learning_rate=1e-2)
    (first,) = one.train(settings, make_examples(11), tiny, tmp_path / "m1")
    check_model_folder(tmp_path / "m1")
    assert {f.name for f in tiny.iterdir()} <= {f.name for f in (tmp_path / "m1").iterdir()}
    assert load_weights(tmp_path / "m1").keys() == load_weights(tiny).keys()
    # And the next iteration starts from it.
    (again,) = one.train(
        settings, make_examples(11), tmp_path / "m1", tmp_path / "m2", base_dir=tiny
    )
    assert again.losses[0] < first.losses[0]


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("start_dtype", ["float32", "bfloat16"])
def test_lora_in_bfloat16_merges_into_the_weights_it_started_from(
    one: Ranks, embedded: Path, tmp_path: Path, stage: int, start_dtype: str
) -> None:
    """Frozen weights are saved bit for bit, though the model that computes is bfloat16."""
    start = save_tiny_model(tmp_path / "start", embedded, dtype=start_dtype)
    examples = make_examples(12)
    settings = config(
        zero_stage=stage,
        lora=LoraConfig(rank=4),
        learning_rate=1e-2,
        dtype="bfloat16",
        validation_fraction=0.2,
    )
    (result,) = one.train(settings, examples, start, tmp_path / "m1", base_dir=start)
    split = split_validation([e.pair_id for e in examples], 0.2, 0)
    _, weights = naive_lora(start, [examples[i] for i in split.train], settings)
    saved, base = load_weights(tmp_path / "m1"), load_weights(start)
    kept = moved = 0.0
    for name, tensor in saved.items():
        assert tensor.dtype == base[name].dtype
        if "proj" not in name:
            assert bool((tensor == base[name]).all()), name
        wanted, got = weights[name] - base[name].float(), tensor.float() - base[name].float()
        kept += float((wanted * got).sum())
        moved += float((wanted * wanted).sum())
    print(f"ZeRO-{stage} from {start_dtype}: {kept / moved:.3f} of the float32 update saved")
    assert kept / moved == pytest.approx(1.0, abs=0.15)
    # What was validated is what was saved.
    held = [examples[i] for i in split.validation]
    again = config(num_epochs=1, batch_size=2, dtype="bfloat16", zero_stage=stage)
    (check,) = one.train(again, held, tmp_path / "m1", tmp_path / "unused", base_dir=start)
    assert result.validation_loss == pytest.approx(check.losses[0], abs=1e-4)


def test_lora_on_two_ranks_and_with_checkpointing(
    one: Ranks, two: Ranks, tiny: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"lora": LoraConfig(rank=4), "learning_rate": 1e-2}
    (alone,) = one.train(config(**changes), make_examples(11), tiny, tmp_path / "alone")
    for stage in (2, 3):
        settings = config(num_ranks=2, zero_stage=stage, activation_checkpointing=True, **changes)
        for result in two.train(settings, make_examples(11), tiny, tmp_path / "both"):
            assert result.losses == pytest.approx(alone.losses, abs=1e-4)
        moved = furthest(load_weights(tmp_path / "alone"), load_weights(tiny))
        gap = furthest(load_weights(tmp_path / "both"), load_weights(tmp_path / "alone"))
        assert gap < 0.01 * moved


def test_a_layer_that_lora_can_not_find_is_named(one: Ranks, tiny: Path, tmp_path: Path) -> None:
    settings = config(lora=LoraConfig(target_modules=("q_proj", "query")))
    with pytest.raises(ConfigError, match=r"no linear layer 'query' .*it has down_proj, gate_proj"):
        one.train(settings, make_examples(3), tiny, tmp_path / "m1")


def test_a_model_that_can_not_be_packed_is_padded(
    one: Ranks, tiny: Path, embedded: Path, tmp_path: Path
) -> None:
    """The rank's log says so; its loss is that of the texts one by one."""
    import torch

    start = save_sink_model(tmp_path / "sinks", embedded)
    examples = make_examples(4)
    settings = config(num_epochs=1)
    (result,) = one.train(settings, examples, start, tmp_path / "m1", base_dir=start)
    with torch.no_grad():
        expected = float(mean_loss(load(start), examples))
    assert result.losses[0] == pytest.approx(expected, abs=1e-5)
    assert "gpt_oss: examples are padded, not packed: " in one.log()


@pytest.mark.parametrize(
    ("norm", "earlier", "problem"),
    [
        (1e9, [2.0, 2.0, 2.0], None),  # too few steps to compare with
        (39.0, [3.0, 1.0, 2.0, 2.0], None),
        (41.0, [3.0, 1.0, 2.0, 2.0], "is 41, 20 times the median 2 of the steps before"),
        (0.9, [1e-3] * 9, None),  # smaller than what is clipped
        (float("nan"), [], "is nan"),
        (float("inf"), [], "is inf"),
        (-1.0, [], "is -1.0"),
    ],
)
def test_when_a_gradient_norm_is_a_problem(
    norm: float, earlier: list[float], problem: str | None
) -> None:
    found = norm_problem(norm, earlier, TrainerConfig(max_grad_norm_growth=20.0))
    assert found is None if problem is None else found is not None and found.startswith(problem)


def save_steep_model(folder: Path, embedded: Path, eps: float) -> Path:
    """Finite losses everywhere, but huge (eps 1e-6) or no (eps 1e-38) gradients at one token."""
    import json

    from safetensors.torch import load_file, save_file

    save_tiny_model(folder, embedded, tied=False)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][_STEEP] *= 1e-30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["rms_norm_eps"] = eps
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def steep_examples(settings: TrainerConfig) -> list[TrainingExample]:
    """Eleven examples; one of the last step's begins with the steep token."""
    examples = make_examples(11, vocabulary=_STEEP)
    layout = Layout(settings.batch_size, settings.micro_batch_size, 1)
    last = plan_steps(range(11), [1] * 11, layout, 1, seed=0)[-1].examples[0]
    own = examples[last]
    ids = (_STEEP, *own.input_ids[1:])
    examples[last] = replace(own, pair_id=own.pair_id, input_ids=ids)
    return examples


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_exploding_gradient_norm_stops_training_by_name(
    one: Ranks, embedded: Path, tmp_path: Path, stage: int
) -> None:
    start = save_steep_model(tmp_path / "start", embedded, eps=1e-6)
    settings = config(zero_stage=stage, num_epochs=1, batch_size=2)
    examples = steep_examples(settings)
    with pytest.raises(DivergenceError) as failure:
        one.train(settings, examples, start, tmp_path / "m1", base_dir=start)
    message = str(failure.value)
    assert "training m_1, step 6 of 6: the gradient norm is" in message
    assert "times the median" in message
    assert "trainer.max_grad_norm_growth is 20" in message
    assert "nothing was saved" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start"]
    # A higher limit lets it pass: it is clipped.
    lenient = settings.model_copy(update={"max_grad_norm_growth": 1e12})
    (result,) = one.train(lenient, examples, start, tmp_path / "m1", base_dir=start)
    assert result.grad_norms[-1] > 20 * max(result.grad_norms[:-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_changes_no_weight(
    embedded: Path, tmp_path: Path, stage: int, dtype: str
) -> None:
    """The loss is finite, its gradient is NaN: the optimizer must not step."""
    start = save_steep_model(tmp_path / "start", embedded, eps=1e-38)
    settings = config(zero_stage=stage, num_epochs=1, batch_size=2, dtype=dtype)
    spec = TrainerSpec(
        str(start), settings, master_port=free_port(), log_file=str(tmp_path / "rank.log")
    )
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_refused_update, args=(spec, theirs), daemon=True)
    process.start()
    assert ours.poll(120)
    loss, error, moved = ours.recv()
    process.join(timeout=20)
    assert 0 < loss < 1e4
    assert "training m_1, step 1 of 1: the gradient norm is" in error
    assert moved == 0.0


def _refused_update(spec: TrainerSpec, pipe: Connection) -> None:
    """Loss of the steep step, the error, and how far any weight is from the start afterwards."""
    rank = TrainerRank(spec)
    rank.start()
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    from stargate.actors.training.deepspeed_backend import DeepSpeedBackend
    from stargate.actors.training.objectives import WeightedNll
    from stargate.actors.training.stage import TrainingStage
    from stargate.actors.training.step_plan import share_out

    examples = [e for e in steep_examples(spec.config) if e.input_ids[0] == _STEEP]
    backend = DeepSpeedBackend(spec, spec.base_model_dir)
    stage = TrainingStage(spec, backend, WeightedNll(), examples)

    def masters() -> list[Any]:
        named = backend._model.named_parameters()
        found = [safe_get_full_fp32_param(p) if spec.config.zero_stage else p for _, p in named]
        return [tensor.detach().clone() for tensor in found]

    before = masters()
    step = share_out([0], [len(examples[0].input_ids)], stage.layout)
    loss, error = stage.evaluate(step, "before"), ""
    try:
        stage.learn(step, 1e-3, [], "training m_1, step 1 of 1")
    except DivergenceError as raised:
        error = str(raised)
    pairs = zip(masters(), before, strict=True)
    moved = max(float((after - old).abs().max()) for after, old in pairs)
    moved = moved if torch.isfinite(torch.tensor(moved)) else float("inf")
    pipe.send((loss, error, moved))
    rank.shutdown()
