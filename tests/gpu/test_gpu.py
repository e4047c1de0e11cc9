"""The actors on an NVIDIA GPU. Skipped without one: CI has none, and then these say nothing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec
from stargate.actors.scoring.scorer import Scorer, ScorerSpec
from stargate.actors.training.rank import TrainerRank
from stargate.actors.training.spec import TrainerSpec
from stargate.config.run import EngineConfig, ScorerConfig, TrainerConfig
from stargate.resources.gpus import gpus
from stargate.resources.models import resolve_model
from stargate.types import (
    GenerateRequest,
    Generation,
    Sampling,
    ScoreRequest,
    StopReason,
    TrainingExample,
    TrainResult,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus(), reason="needs an NVIDIA GPU"),
]

PROMPT = tuple(range(1000, 1040))
GOLD = tuple(range(2000, 2020))
EXAMPLES = [
    TrainingExample(f"t:p{i}", f"d{i}", PROMPT, (0,) * 20 + (1,) * 20, "") for i in range(4)
]


def score(device: str, dtype: str) -> list[float]:
    config = ScorerConfig(dtype=dtype)  # type: ignore[arg-type]
    scorer = Scorer(ScorerSpec(str(resolve_model("embedded")), config, 2, device))  # type: ignore[arg-type]
    scorer.start()
    [result] = asyncio.run(scorer.score([ScoreRequest("k", PROMPT, (GOLD,))]))
    scorer.shutdown()
    return list(result.token_logprobs[0])


def test_the_scorer_equals_its_float32_self_on_the_cpu() -> None:
    reference = score("cpu", "float32")
    got = score("cuda", "bfloat16")
    assert sum(abs(a - b) for a, b in zip(got, reference, strict=True)) / len(GOLD) < 0.05


def test_training_and_pushing_changes_what_the_engine_answers(tmp_path: Path) -> None:
    config = TrainerConfig(
        batch_size=4, num_epochs=4, learning_rate=1e-3, validation_fraction=0, max_length=64
    )
    trained = asyncio.run(_train(config, tmp_path))
    assert trained.losses[-1] < trained.losses[0]
    before, after = asyncio.run(_push(trained.model_dir))
    assert before.policy_version == 0
    assert after.policy_version == 1
    assert before.token_ids != after.token_ids
    assert after.stop in (StopReason.STOP, StopReason.LENGTH)


async def _train(config: TrainerConfig, folder: Path) -> TrainResult:
    base = str(resolve_model("embedded"))
    rank = TrainerRank(TrainerSpec(base, config, device="cuda"))
    rank.start()
    try:
        return await rank.train(EXAMPLES, base, str(folder / "m1"), 1)
    finally:
        rank.shutdown()


async def _push(model_dir: str) -> tuple[Generation, Generation]:
    settings = EngineConfig(max_model_len=512, gpu_memory_utilization=0.3)
    engine = Engine(
        EngineSpec("questioner", str(resolve_model("embedded")), settings, device="cuda")
    )
    await engine.start()
    try:
        sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=16, seed=0)

        async def answer(name: str) -> Any:
            return await engine.generate(GenerateRequest(name, name, PROMPT[:20], sampling))

        before = await answer("before")
        await engine.load_weights(model_dir, 1)
        return before, await answer("after")
    finally:
        await engine.shutdown()
