"""One GPU for everybody: vLLM's sleep mode, and a whole run that takes turns. Skipped without one.

Not run yet by anybody: written against the sources of vLLM 0.32.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from stargate.actors.engines.engine import Engine
from stargate.actors.engines.spec import EngineSpec
from stargate.actors.scoring.scorer import Scorer, ScorerSpec
from stargate.config.run import EngineConfig, ScorerConfig
from stargate.errors import EngineError
from stargate.resources.gpus import gpus
from stargate.resources.models import resolve_model
from stargate.types import GenerateRequest, Sampling, ScoreRequest
from tests.integration.run_process import SMALL, Command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus(), reason="needs an NVIDIA GPU"),
]

PROMPT = tuple(range(1000, 1020))
GOLD = tuple(range(2000, 2020))
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=16, seed=0)
GIB = 2**30


def used_gib() -> float:
    """What all processes together hold of the first GPU."""
    import torch

    free, total = torch.cuda.mem_get_info(0)
    return (total - free) / GIB


def test_an_engine_gives_the_gpu_up_and_answers_as_before() -> None:
    asyncio.run(_sleep_and_wake())


async def _sleep_and_wake() -> None:
    settings = EngineConfig(max_model_len=512, gpu_memory_utilization=0.3)
    base = str(resolve_model("embedded"))
    engine = Engine(EngineSpec("questioner", base, settings, device="cuda", sleeps=True))

    async def answer(name: str) -> tuple[int, ...]:
        request = GenerateRequest(name, name, PROMPT, GREEDY)
        return (await engine.generate(request)).token_ids

    await engine.start()
    try:
        before, awake = await answer("before"), used_gib()
        await engine.sleep(1)
        asleep = used_gib()
        # 0.3 of the GPU were weights and cache; a context and graphs stay.
        assert asleep < awake - 0.15 * _total_gib(), (awake, asleep)
        with pytest.raises(EngineError, match="it is asleep"):
            await answer("asleep")
        assert await engine.reported_version() == 0  # the watch still gets its answer
        assert await engine.wake_up()
        assert await answer("woken") == before
        # Without its weights only new ones wake it: here the same once more, under a new version.
        await engine.sleep(2)
        assert not await engine.wake_up()
        await engine.load_weights(base, 1)
        assert await engine.reported_version() == 1
        assert await answer("loaded") == before
        # And what was loaded is what the next light sleep keeps.
        await engine.sleep(1)
        assert used_gib() < awake - 0.15 * _total_gib()
        assert await engine.wake_up()
        assert await answer("again") == before
    finally:
        await engine.shutdown()


def _total_gib() -> float:
    import torch

    return float(torch.cuda.mem_get_info(0)[1]) / GIB


def test_a_scorer_gives_the_gpu_up_and_scores_as_before() -> None:
    asyncio.run(_score_sleep_score())


async def _score_sleep_score() -> None:
    import torch

    base = str(resolve_model("embedded"))
    scorer = Scorer(ScorerSpec(base, ScorerConfig(dtype="float32"), 2, "cuda"))
    scorer.start()
    try:

        async def score() -> list[float]:
            [result] = await scorer.score([ScoreRequest("k", PROMPT, (GOLD,))])
            return list(result.token_logprobs[0])

        before, awake = await score(), torch.cuda.memory_reserved()
        await scorer.sleep(1)
        assert torch.cuda.memory_reserved() < awake / 4
        with pytest.raises(EngineError, match="it is asleep"):
            await score()
        assert await scorer.wake_up()
        assert await score() == pytest.approx(before, abs=1e-4)
    finally:
        scorer.shutdown()


def test_a_whole_run_on_one_gpu(tmp_path: Path) -> None:
    shares = [f"{role}.engine.gpu_memory_utilization=0.3" for role in ("questioner", "roleplayer")]
    run = Command(
        *("run", "cpu_demo", *SMALL, f"runs_dir={tmp_path}", "device=cuda"),
        *("cluster.strategy=colocated", "trainer.num_ranks=1", "scorer.num_scorers=1", *shares),
    )
    output = run.finish()
    assert run.process.returncode == 0, output
    assert "all actors share one GPU, and engines sleep while others use it" in output
    [root] = tmp_path.iterdir()
    summary: dict[str, Any] = json.loads((root / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert not summary.get("restarts")
    assert (root / "models/m1/model.safetensors").is_file()
    trainer = (root / "logs/trainer-0.log").read_text()
    assert "rank 0 of 1 computes on cuda:0" in trainer, trainer
    assert run.left_over() == []
