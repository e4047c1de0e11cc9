"""Our top-p beside vLLM's, and the log-probs over what is left of the vocabulary."""

import pytest

from stargate.resources.models import resolve_model

pytestmark = pytest.mark.integration


def test_our_nucleus_is_vllms() -> None:
    import torch
    from transformers import AutoTokenizer
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    from stargate.actors.engines.nucleus import keep_nucleus

    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01], [0.25] * 4]).log()
    kept = keep_nucleus(logits, torch.tensor([0.65, 0.9, 0.5])).isfinite()
    # 0.4 + 0.3 reach 0.65; 0.97 alone reaches 0.9; equals stay together.
    assert kept.tolist() == [[False, True, False, True], [True] + [False] * 3, [True] * 4]
    vocabulary = len(AutoTokenizer.from_pretrained(resolve_model("embedded")))
    generator = torch.Generator().manual_seed(0)
    top_p = torch.rand(32, generator=generator) * 0.98 + 0.01
    for scale in (0.1, 1.0, 4.0):  # from nuclei of nearly all tokens to those of a few
        rows = torch.randn(32, vocabulary, generator=generator) * scale
        theirs = apply_top_k_top_p(rows.clone(), None, top_p).isfinite()
        ours = keep_nucleus(rows.clone(), top_p).isfinite()
        # Sums in another order may decide differently about a nucleus's least token.
        assert (ours != theirs).sum(dim=-1).max() <= 1
        assert (ours != theirs).sum() <= 3


def test_logprobs_over_a_nucleus_sum_up_to_one() -> None:
    import torch

    from stargate.actors.engines.nucleus import keep_nucleus, sampled_logprobs

    row = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    logits = keep_nucleus(row.clone(), torch.tensor([0.9])).expand(300, -1)
    found = sampled_logprobs(logits, 0, torch.arange(300))
    kept, logprobs = logits[0].isfinite(), found.logprobs[:, 0]
    assert 10 < kept.sum() < 250
    assert logprobs.exp().sum() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(logprobs.isfinite(), kept)
    expected = row[0, kept] - row[0, kept].logsumexp(0)
    assert torch.allclose(logprobs[kept], expected, atol=1e-5)
    assert found.logprob_token_ids[:, 0].tolist() == list(range(300))
    with pytest.raises(ValueError, match="only the sampled token's log-prob is computed, got 2"):
        sampled_logprobs(logits, 2, torch.arange(300))
