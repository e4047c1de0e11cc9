"""Training that goes on from a checkpoint comes to the same weights and losses, to the bit."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stargate.config.run import LoraConfig, TrainerConfig
from stargate.errors import MachineError
from stargate.records.training_checkpoints import read_manifest
from stargate.types import TrainResult
from tests.integration.naive_trainer import config, load_weights, make_examples
from tests.integration.ranks import Ranks
from tests.integration.tiny_model import save_tiny_model

pytestmark = pytest.mark.integration

# Two are held out, four make a step, two epochs: 6 steps, of which 2 and 4 leave a checkpoint.
EXAMPLES = make_examples(11)
LORA = LoraConfig(rank=4, alpha=8)


def settings(**changes: Any) -> TrainerConfig:
    changes = {"checkpoint_steps": 2, "checkpoint_seconds": None, **changes}
    return config(validation_fraction=0.2, **changes)


def interrupt(ranks: Ranks, chosen: TrainerConfig, start: Path, folder: Path) -> None:
    """A training that does all of its steps but can't save its model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    in_the_way = folder.parent / "file"
    in_the_way.write_text("no folder")
    with pytest.raises(MachineError, match="can't save the model"):
        ranks.train(
            chosen, EXAMPLES, start, in_the_way / "m1", base_dir=start, checkpoint_dir=folder
        )
    assert names(folder) == ["step-2", "step-4", "steps"]


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


def same(got: TrainResult, expected: TrainResult) -> None:
    """All that was computed, and the saved weights."""
    import torch

    for name in ("losses", "grad_norms", "learning_rates", "validation_loss", "num_tokens"):
        assert getattr(got, name) == getattr(expected, name), name
    one, other = load_weights(Path(got.model_dir)), load_weights(Path(expected.model_dir))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


CASES = [
    ({"zero_stage": 0}, 0.0),
    ({"zero_stage": 2}, 0.0),
    ({"zero_stage": 3}, 0.0),
    ({"zero_stage": 1, "dtype": "bfloat16"}, 0.0),
    ({"zero_stage": 2, "dtype": "bfloat16"}, 0.0),
    ({"zero_stage": 3, "dtype": "bfloat16"}, 0.0),
    ({"zero_stage": 0, "lora": LORA}, 0.0),
    ({"zero_stage": 2, "lora": LORA, "dtype": "bfloat16"}, 0.0),
    # Dropout draws from torch's generator, so that must go on too.
    ({"zero_stage": 2, "packing": False}, 0.2),
]


@pytest.mark.parametrize(("changes", "dropout"), CASES)
def test_one_rank_goes_on_to_the_bit(
    one: Ranks, embedded: Path, tmp_path: Path, changes: dict[str, Any], dropout: float
) -> None:
    dtype = str(changes.get("dtype", "float32"))
    start = save_tiny_model(tmp_path / "start", embedded, dtype=dtype, dropout=dropout)
    chosen = settings(**changes)
    (whole,) = one.train(chosen, EXAMPLES, start, tmp_path / "whole", base_dir=start)
    assert (len(whole.losses), whole.num_repeated_steps) == (6, None)
    folder = tmp_path / "t0" / "training"
    interrupt(one, chosen, start, folder)
    shutil.rmtree(folder / "step-4")
    before = one.log()
    (result,) = one.train(
        chosen, EXAMPLES, start, tmp_path / "m1", base_dir=start, checkpoint_dir=folder
    )
    assert "training goes on from step 2 of 6" in one.log().removeprefix(before)
    same(result, whole)
    assert result.num_repeated_steps == 4


def test_dropout_is_really_drawn(one: Ranks, embedded: Path, tmp_path: Path) -> None:
    """Otherwise the last case above would show nothing."""
    losses = []
    for dropout in (0.0, 0.2):
        start = save_tiny_model(tmp_path / f"start-{dropout}", embedded, dropout=dropout)
        chosen = settings(packing=False, num_epochs=1)
        (result,) = one.train(chosen, EXAMPLES, start, tmp_path / "m1", base_dir=start)
        losses.append(result.losses)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "changes", [{"zero_stage": 2}, {"zero_stage": 3, "dtype": "bfloat16"}, {"zero_stage": 0}]
)
def test_two_ranks_go_on_to_the_bit(
    two: Ranks, embedded: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    dtype = str(changes.get("dtype", "float32"))
    # Weights of 33 numbers can't be halved.
    start = save_tiny_model(tmp_path / "start", embedded, dtype=dtype, hidden_size=33)
    chosen = settings(num_ranks=2, **changes)
    whole, _ = two.train(chosen, EXAMPLES, start, tmp_path / "whole", base_dir=start)
    folder = tmp_path / "t0" / "training"
    interrupt(two, chosen, start, folder)
    written = {name.split(".")[0] for name in names(folder / "step-4")}
    assert written == {"manifest", "rank-0", "rank-1"}
    for kind in ("master", "exp_avg", "exp_avg_sq", "step", "random"):  # each rank writes its share
        assert names(folder / "step-4").count(f"rank-1.{kind}.safetensors") == 1
    both = two.train(
        chosen, EXAMPLES, start, tmp_path / "m1", base_dir=start, checkpoint_dir=folder
    )
    for result in both:
        same(result, whole)
    assert both[0].num_repeated_steps == 2


def test_a_killed_rank_goes_on_in_new_processes(tiny: Path, tmp_path: Path) -> None:
    """kill -9 some steps after a checkpoint; twice."""
    chosen = settings(num_epochs=60, checkpoint_steps=9)
    folder = tmp_path / "t0" / "training"
    for attempt, awaited in enumerate((13, 40, None)):
        ranks = Ranks(1, tiny, tmp_path / f"logs-{attempt}")
        try:
            if awaited is None:
                (result,) = ranks.train(
                    chosen, EXAMPLES, tiny, tmp_path / "m1", checkpoint_dir=folder
                )
            else:
                kill_at(ranks, folder, awaited, chosen, tiny)
        finally:
            ranks.close()
        if attempt:
            assert "training goes on from step " in ranks.log()
    assert result.num_repeated_steps is not None
    assert 0 < result.num_repeated_steps < 2 * 9
    ranks = Ranks(1, tiny, tmp_path / "logs-whole")
    try:
        (whole,) = ranks.train(chosen, EXAMPLES, tiny, tmp_path / "whole")
    finally:
        ranks.close()
    assert len(whole.losses) == 180
    same(result, whole)


def kill_at(ranks: Ranks, folder: Path, step: int, chosen: TrainerConfig, start: Path) -> None:
    """Trains until about so many steps were done, by all attempts, and kills the rank."""

    def train() -> None:
        with pytest.raises(EOFError):
            ranks.train(chosen, EXAMPLES, start, folder.parent / "unused", checkpoint_dir=folder)

    training = threading.Thread(target=train)
    training.start()
    deadline = time.monotonic() + 60
    steps = folder / "steps"
    while not (steps.is_file() and steps.read_text().count("\n") >= step):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks.kill(0)
    training.join()


def test_a_torn_checkpoint_is_set_aside_and_the_one_before_it_used(
    one: Ranks, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "t0" / "training"
    (whole,) = one.train(settings(), EXAMPLES, tiny, tmp_path / "whole")
    for damage in (flip_a_bit, cut, drop_the_manifest):
        shutil.rmtree(folder, ignore_errors=True)
        interrupt(one, settings(), tiny, folder)
        damage(folder / "step-4")
        before = one.log()
        (result,) = one.train(settings(), EXAMPLES, tiny, tmp_path / "m1", checkpoint_dir=folder)
        said = one.log().removeprefix(before)
        assert "damaged checkpoint of step 4: " in said
        assert "set aside as step-4.damaged-1" in said
        assert "training goes on from step 2 of 6" in said
        same(result, whole)
        assert names(folder) == ["step-2", "step-4", "step-4.damaged-1", "steps"]


def flip_a_bit(place: Path) -> None:
    file = place / "rank-0.exp_avg.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(place: Path) -> None:
    file = place / "rank-0.master.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop_the_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


def test_a_torn_file_of_another_rank_stops_all(two: Ranks, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t0" / "training"
    chosen = settings(num_ranks=2)
    interrupt(two, chosen, tiny, folder)
    (folder / "step-4" / "rank-1.master.safetensors").unlink()
    both = two.train(chosen, EXAMPLES, tiny, tmp_path / "m1", checkpoint_dir=folder)
    assert "training goes on from step 2 of 6" in two.log()
    assert both[0].losses == both[1].losses


def test_a_checkpoint_of_another_training_is_refused(
    one: Ranks, two: Ranks, tiny: Path, embedded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "t0" / "training"
    other = save_tiny_model(tmp_path / "other", embedded, seed=1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"settings": settings(learning_rate=2e-3)}, "another trainer.learning_rate"),
        ({"examples": EXAMPLES[:-1]}, "with other examples"),
        ({"start": other}, "with another start model"),
    ]
    interrupt(one, settings(), tiny, folder)
    kept = tmp_path / "kept"
    folder.rename(kept)
    for change, reason in cases:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        chosen = change.get("settings", settings())
        examples = change.get("examples", EXAMPLES)
        start = change.get("start", tiny)
        before = one.log()
        (result,) = one.train(chosen, examples, start, tmp_path / "m1", checkpoint_dir=folder)
        said = one.log().removeprefix(before)
        assert "the checkpoint of step 4 is not used: it " in said
        assert reason in said
        assert "training begins anew" in said
        (fresh,) = one.train(chosen, examples, start, tmp_path / "fresh")
        same(result, fresh)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    two.train(settings(num_ranks=2), EXAMPLES, tiny, tmp_path / "m1", checkpoint_dir=folder)
    assert "it was written by 1 rank(s), now there are 2" in two.log()


def test_what_is_written_is_no_pickle_and_says_what_was_done(
    one: Ranks, tiny: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "t0" / "training"
    interrupt(one, settings(), tiny, folder)
    place = folder / "step-4"
    kinds = ("exp_avg", "exp_avg_sq", "master", "random", "step")
    assert names(place) == ["manifest.json", *(f"rank-0.{kind}.safetensors" for kind in kinds)]
    manifest = read_manifest(place)
    assert (manifest.step, manifest.num_steps, len(manifest.log.losses)) == (4, 6, 4)
    steps = load_file(place / "rank-0.step.safetensors")
    assert {float(step) for step in steps.values()} == {4.0}
    assert load_file(place / "rank-0.random.safetensors")["cpu"].numel() > 1000
    masters = load_file(place / "rank-0.master.safetensors")
    assert masters["model.norm.weight"].shape == (32,)
    assert (folder / "steps").read_text() == "1\n2\n3\n4\n5\n6\n"


def test_time_makes_a_checkpoint_due(one: Ranks, two: Ranks, tiny: Path, tmp_path: Path) -> None:
    """Nothing is written within the default interval; with a tiny one, after the first step.

    How soon the next may come is a matter of how long that took (test_checkpoint_ranks.py).
    """
    for ranks, num_ranks in ((one, 1), (two, 2)):
        folder = tmp_path / f"t{num_ranks}" / "training"
        chosen = config(num_ranks=num_ranks)
        ranks.train(chosen, EXAMPLES, tiny, tmp_path / "m1", checkpoint_dir=folder)
        assert names(folder) == ["steps"]
        chosen = config(num_ranks=num_ranks, checkpoint_seconds=1e-6)
        ranks.train(chosen, EXAMPLES, tiny, tmp_path / "m1", checkpoint_dir=folder)
        assert len(names(folder)) > 1


def test_training_goes_on_when_no_checkpoint_can_be_written(
    one: Ranks, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "t0").write_text("a file where the folder should be")
    (result,) = one.train(
        settings(), EXAMPLES, tiny, tmp_path / "m1", checkpoint_dir=tmp_path / "t0" / "training"
    )
    assert len(result.losses) == 6
    assert result.num_repeated_steps is None
    assert one.log().count("no checkpoints of this training: ") == 1
