"""Step 6. The scorer's tokens per second, by the bytes of logits that it makes at a time."""

import gc
import time

import torch

from stargate.actors.scoring import gold_logprobs
from stargate.actors.scoring.gold_model import GoldModel
from stargate.config.run import ScorerConfig
from stargate.types import ScoreRequest
from tests.gpu.steps.common import Step, model_config, random_ids, run_step, save_random

_MIB = 2**20
_PARTS = (256, 1024, 4096)  # MiB of logits
_CONTEXT, _GOLD = 250, 160  # tokens, as in docs/scaling.md


def check(step: Step) -> None:
    count = 4 if step.small else 96
    for name in ("qwen-1.5b", "mistral-7b"):
        shape = model_config(name, step.small)
        folder = save_random(step.folder / name, shape, step.device)
        requests = [
            ScoreRequest(
                f"d{n}",
                random_ids(_CONTEXT, shape.vocab_size, n),
                (random_ids(_GOLD, shape.vocab_size, 1000 + n),),
            )
            for n in range(count)
        ]
        config = ScorerConfig(max_batch_tokens=16_384)
        model = GoldModel(str(folder), config, step.device, False)
        for part in _PARTS:
            gold_logprobs._PART_BYTES = part * _MIB
            if step.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            model.score(requests[:2])  # kernels are loaded
            started = time.perf_counter()
            scored = model.score(requests)
            seconds = time.perf_counter() - started
            flat = torch.tensor([p for r in scored.logprobs for gold in r for p in gold])
            step.require(bool(torch.isfinite(flat).all()), f"{name}: a log-prob is not finite")
            peak = torch.cuda.max_memory_allocated() if step.device == "cuda" else None
            step.figures[f"{name}_{part}_mib"] = {
                "tokens_per_s": round(scored.num_tokens / seconds),
                "peak_gib": None if peak is None else round(peak / 2**30, 2),
            }
        del model
        gc.collect()
        if step.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    run_step("speed", check)
