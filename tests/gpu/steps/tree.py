"""Step 3. Tree scoring: dialogues that share an opening, three golds; against one by one."""

from pathlib import Path
from typing import Any

import torch

from stargate.actors.scoring.gold_model import GoldModel
from stargate.config.run import ScorerConfig
from stargate.types import ScoreRequest
from tests.gpu.steps.common import Step, model_config, random_ids, run_step, save_random

_DIALOGUES, _GOLDS = 10, 3


def _requests(vocabulary: int) -> list[ScoreRequest]:
    opening = random_ids(150, vocabulary, 1)
    golds = tuple(random_ids(40 + 20 * n, vocabulary, 10 + n) for n in range(_GOLDS))
    return [
        ScoreRequest(f"d{n}", opening + random_ids(20 + 7 * n, vocabulary, 100 + n), golds)
        for n in range(_DIALOGUES)
    ]


@torch.no_grad()
def _one_by_one(folder: Path, requests: list[ScoreRequest], device: str) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    torch.set_float32_matmul_precision("highest")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    found = []
    for request in requests:
        for gold in request.golds:
            ids = torch.tensor([[*request.context_ids, *gold]], device=device)
            logprobs = model(ids).logits[0, -len(gold) - 1 : -1].log_softmax(-1)
            found.append(logprobs.gather(1, ids[0, -len(gold) :, None])[:, 0].cpu())
    return torch.cat(found)


def check(step: Step) -> None:
    for head_dim in (64, 128):
        changes = {"head_dim": head_dim, "num_hidden_layers": 4, "initializer_range": 0.1}
        shape = model_config("llama-100m", step.small, **changes)
        folder = save_random(step.folder / f"head-{head_dim}", shape, step.device)
        requests = _requests(shape.vocab_size)
        expected = _one_by_one(folder, requests, step.device)
        # float32 first: scoring in bfloat16 lets products of float32 be rounded from then on.
        for dtype, worst in (("float32", 0.002), ("bfloat16", 1.0)):
            config = ScorerConfig(dtype=dtype)
            model = GoldModel(str(folder), config, step.device, False)
            step.require(model._shares, f"head size {head_dim}, {dtype}: contexts are not shared")
            scored = model.score(requests)
            flat = [p for golds in scored.logprobs for gold in golds for p in gold]
            gaps = (torch.tensor(flat) - expected).abs()
            name = f"head{head_dim}_{dtype}"
            step.figures[name] = {
                "mean_gap_nats": round(float(gaps.mean()), 6),
                "largest_gap_nats": round(float(gaps.max()), 6),
                "tokens": scored.num_tokens,
            }
            step.require(float(gaps.max()) < worst, f"{name}: a log-prob is {gaps.max():.4f} off")
            step.require(float(gaps.mean()) < worst / 10, f"{name}: {gaps.mean():.4f} off")
            alone = sum(len(r.context_ids) * _GOLDS for r in requests)
            step.require(scored.num_tokens < alone, f"{name}: no context was computed once only")


if __name__ == "__main__":
    run_step("tree", check)
