"""Step 1. torch's attention for several lengths: its signature, and a packed row with it."""

import inspect
from typing import Any

import torch

from stargate.actors.modeling.attention import has_varlen
from stargate.actors.training import packing
from tests.gpu.steps.common import Step, run_step

# Keywords that packing.py and tree_attention.py call it with.
_KEYWORDS = {"scale", "window_size", "enable_gqa"}
_TEXTS = (50, 7, 200)


def largest_gaps(device: str) -> tuple[float, float]:
    """Of logits and of gradients: a packed row from each text alone, as shares of their size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config).to(device, torch.bfloat16).eval()
    texts = [torch.randint(100, (n,)).tolist() for n in _TEXTS]
    alone = torch.cat([model(torch.tensor([text], device=device)).logits[0] for text in texts])
    alone.float().logsumexp(-1).sum().backward()
    expected = {name: p.grad.float().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    if (problem := packing.make_packable(model)) is not None:
        raise ValueError(problem)
    ids, positions = (tensor.to(device) for tensor in packing.pack(texts))
    inputs = {"position_ids": positions, "use_cache": False, "packed_lengths": _TEXTS}
    together = model(ids, **inputs).logits[0]
    logits = float((together - alone).abs().max() / together.abs().max())
    together.float().logsumexp(-1).sum().backward()
    gradients = max(
        float((p.grad.float() - expected[name]).norm() / expected[name].norm())
        for name, p in model.named_parameters()
    )
    return logits, gradients


def check(step: Step) -> None:
    from torch.nn.attention.varlen import varlen_attn

    signature = inspect.signature(varlen_attn)
    step.figures["varlen_attn"] = str(signature)
    missing = _KEYWORDS - signature.parameters.keys()
    step.require(not missing, f"varlen_attn does not know {sorted(missing)}")
    probe = torch.zeros(1, 4, 1, 64, device=step.device, dtype=torch.bfloat16)
    step.figures["varlen_runs_here"] = has_varlen(probe, probe)
    step.require(step.device == "cpu" or has_varlen(probe, probe), "no varlen attention here")
    logits, gradients = largest_gaps(step.device)
    step.figures |= {"logits_gap": round(logits, 5), "gradients_gap": round(gradients, 5)}
    step.require(logits < 0.02, "logits of a packed row differ from those of each text alone")
    step.require(gradients < 0.05, "gradients of a packed row differ from those of each text alone")


if __name__ == "__main__":
    run_step("packing", check)
