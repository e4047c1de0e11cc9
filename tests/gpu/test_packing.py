"""Packed rows on a GPU: torch's flash attention for several lengths in one kernel."""

from typing import Any

import pytest

pytestmark = pytest.mark.gpu


def test_flash_attention_of_a_row_equals_each_example_alone() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from transformers import LlamaConfig, LlamaForCausalLM

    from stargate.actors.modeling.attention import has_varlen
    from stargate.actors.training import packing

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    probe = torch.zeros(1, 4, 1, 64, device="cuda", dtype=torch.bfloat16)
    assert has_varlen(probe, probe)
    texts = [torch.randint(100, (n,)).tolist() for n in (50, 7, 200)]
    alone = [model(torch.tensor([text], device="cuda")).logits[0] for text in texts]
    torch.cat(alone).float().logsumexp(-1).sum().backward()
    expected = {name: p.grad.float().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert packing.make_packable(model) is None
    ids, positions = (tensor.to("cuda") for tensor in packing.pack(texts))
    together = model(
        ids, position_ids=positions, use_cache=False, packed_lengths=(50, 7, 200)
    ).logits[0]
    assert float((together - torch.cat(alone)).abs().max()) < 0.02 * float(together.abs().max())
    together.float().logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        gap = float((parameter.grad.float() - expected[name]).norm() / expected[name].norm())
        assert gap < 0.03, name
