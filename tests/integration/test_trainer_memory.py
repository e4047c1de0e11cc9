"""What training stages leave behind, which engines and the next stage would miss on a GPU."""

import asyncio
import gc
import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from stargate.actors.training import deepspeed_backend, loading, packing
from stargate.actors.training.deepspeed_backend import DeepSpeedBackend
from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import LoraConfig
from stargate.errors import DivergenceError
from stargate.resources.machine import free_port
from tests.gpu.steps.common import alive_bytes
from tests.integration.naive_trainer import config, make_examples
from tests.integration.ranks import Ranks
from tests.integration.tiny_model import damage, save_tiny_model

pytestmark = pytest.mark.integration

_PARAMETERS = 1_590_000


def alive() -> float:
    """Bytes of all tensors of this process, per parameter of the tiny model."""
    return alive_bytes() / _PARAMETERS


class OnAGpu(DeepSpeedBackend):
    """Believes itself on a GPU when it is closed, and notes what is alive when the cache is."""

    left: list[float] = []  # noqa: RUF012 - of the process

    def close(self) -> None:
        def empty_cache() -> None:
            self.left.append(alive())

        torch.cuda.empty_cache, original = empty_cache, torch.cuda.empty_cache  # type: ignore[misc]
        self._device = torch.device("cuda")
        try:
            super().close()
        finally:
            torch.cuda.empty_cache = original  # type: ignore[misc]


def _three_stages(spec: TrainerSpec, damaged: str, folder: str, pipe: Connection) -> None:
    """Bytes alive at the start, when each stage empties the GPU's cache, and after each stage."""
    rank = TrainerRank(spec)
    rank.start()
    after = [alive()]

    def train(start: str) -> None:
        asyncio.run(rank.train(make_examples(4), start, f"{folder}/m1", 1))

    for _ in range(3):
        train(spec.base_model_dir)
        gc.collect()
        after.append(alive())
    try:
        train(damaged)
    except DivergenceError:
        after.append(alive())  # while the error, and all that it refers to, is there
    pipe.send((after, OnAGpu.left))
    rank.shutdown()


@pytest.mark.parametrize(
    ("stage", "lora"), [(0, None), (2, None), (3, None), (3, LoraConfig(rank=4))]
)
def test_three_stages_and_one_that_fails_leave_nothing(
    embedded: Path, tmp_path: Path, stage: Any, lora: LoraConfig | None
) -> None:
    start = save_tiny_model(tmp_path / "start", embedded, dtype="bfloat16")
    damaged = save_tiny_model(tmp_path / "damaged", embedded, dtype="bfloat16")
    damage(damaged, make_examples(4)[0].input_ids[0])
    settings = config(zero_stage=stage, dtype="bfloat16", num_epochs=1, lora=lora)
    settings = settings.model_copy(update={"backend": f"{__name__}:{OnAGpu.__name__}"})
    spec = TrainerSpec(
        str(start), settings, master_port=free_port(), log_file=str(tmp_path / "rank.log")
    )
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (spec, str(damaged), str(tmp_path), theirs)
    process = context.Process(target=_three_stages, args=arguments, daemon=True)
    process.start()
    assert ours.poll(300), (tmp_path / "rank.log").read_text()
    after, when_emptied = ours.recv()
    process.join(timeout=20)
    print(f"ZeRO-{stage}: bytes per parameter after {after}, at empty_cache() {when_emptied}")
    assert len(after) == 5 and max(after) < 0.2
    assert len(when_emptied) == 4 and max(when_emptied) < 0.2


class Watched(DeepSpeedBackend):
    """Writes down how often it rounded and read, and what it held while it loaded."""

    def __init__(self, spec: TrainerSpec, start_model_dir: str) -> None:
        read, on_device = loading.load_model, loading._on_device
        notes = {"read": 0, "held": 0.0}

        def counted(*arguments: Any) -> Any:
            notes["read"] += 1
            return read(*arguments)

        def measured(*arguments: Any) -> Any:
            made = on_device(*arguments)
            notes["held"] = max(notes["held"], alive())
            return made

        loading.load_model, loading._on_device = counted, measured
        try:
            super().__init__(spec, start_model_dir)
        finally:
            loading.load_model, loading._on_device = read, on_device
        Path(spec.log_file or "").with_suffix(".loaded").write_text(json.dumps(notes))

    def settle(self) -> None:
        calls = 0
        original = deepspeed_backend.round_unbiased

        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*arguments)

        deepspeed_backend.round_unbiased = counted
        try:
            super().settle()
        finally:
            deepspeed_backend.round_unbiased = original
        note = Path(self._spec.log_file or "").with_suffix(".rounded")
        note.write_text(f"{calls}")

    def save(self, output_dir: str) -> None:
        """Rank 0 takes longer than the others' collectives would wait for it."""
        import time

        from torch.distributed import distributed_c10d

        if self._spec.rank == 0:
            time.sleep(3.0)
        else:
            group = distributed_c10d._get_default_group()
            distributed_c10d._set_pg_timeout(deepspeed_backend.timedelta(seconds=1), group)
        super().save(output_dir)


@pytest.mark.parametrize("stage", [2, 3])
def test_rank_0_alone_rounds_and_the_others_wait_for_its_save(
    embedded: Path, tmp_path: Path, stage: Any
) -> None:
    start = save_tiny_model(tmp_path / "start", embedded, dtype="bfloat16", tied=False)
    settings = config(
        zero_stage=stage, dtype="bfloat16", num_ranks=2, num_epochs=1, validation_fraction=0.2
    )
    settings = settings.model_copy(update={"backend": f"{__name__}:{Watched.__name__}"})
    ranks = Ranks(2, start, tmp_path)
    try:
        first, second = ranks.train(settings, make_examples(12), start, tmp_path / "m1")
    finally:
        ranks.close()
    calls = [int((tmp_path / f"rank-{rank}.rounded").read_text()) for rank in range(2)]
    assert calls[0] > 10 and calls[1] == 0
    loaded = [json.loads((tmp_path / f"rank-{rank}.loaded").read_text()) for rank in range(2)]
    print(f"ZeRO-{stage}: {loaded} (the whole is 4; embeddings and head are half of it each)")
    assert [note["read"] for note in loaded] == ([1, 1] if stage == 2 else [1, 0])
    # The largest parameter and the own half of what came before. Whole it would be 4.
    assert stage == 2 or loaded[1]["held"] < 3.2
    # Both computed with what rank 0 rounded.
    assert first.validation_loss == second.validation_loss


class Trying(DeepSpeedBackend):
    """Writes down in which precision packed attention was computed when it was tried."""

    def __init__(self, spec: TrainerSpec, start_model_dir: str) -> None:
        attention, seen = packing._attention, set()

        def watched(module: Any, query: torch.Tensor, *others: Any, **named: Any) -> Any:
            seen.add(str(query.dtype))
            return attention(module, query, *others, **named)

        packing._attention = watched
        try:
            super().__init__(spec, start_model_dir)
        finally:
            packing._attention = attention
        assert self.packed
        Path(spec.log_file or "").with_suffix(".tried").write_text(" ".join(seen))


@pytest.mark.parametrize("stage", [2, 3])
def test_packing_is_tried_as_the_model_trains(
    one: Ranks, tiny: Path, tmp_path: Path, stage: Any
) -> None:
    """After DeepSpeed has put it where it computes: in bfloat16, though its files are float32."""
    settings = config(zero_stage=stage, dtype="bfloat16", num_epochs=1)
    settings = settings.model_copy(update={"backend": f"{__name__}:{Trying.__name__}"})
    one.train(settings, make_examples(4), tiny, tmp_path / "m1")
    tried = Path(one._specs[0].log_file or "").with_suffix(".tried")
    assert tried.read_text() == "torch.bfloat16"
    tried.unlink()


def test_rounding_a_part_at_a_time_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from stargate.actors.modeling import model

    values = torch.randn(7, 13, generator=torch.Generator().manual_seed(1))
    seeded = torch.Generator().manual_seed
    whole = model.round_unbiased(values, torch.bfloat16, seeded(3))
    monkeypatch.setattr(model, "_ROUNDED_AT_ONCE", 17)
    assert torch.equal(model.round_unbiased(values, torch.bfloat16, seeded(3)), whole)
    # And it is what was drawn when all was done at once: a model of today is one of yesterday.
    draw = torch.rand(values.shape, generator=seeded(3))
    nearest = values.bfloat16()
    gap = values - nearest.float()
    up = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    down = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    other = torch.where(gap > 0, up, down)
    chance = gap / (other.float() - nearest.float())
    assert torch.equal(torch.where(draw < chance, other, nearest), whole)
