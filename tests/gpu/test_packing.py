"""Packed rows on a GPU: torch's flash attention for several lengths in one kernel."""

import pytest

pytestmark = pytest.mark.gpu


def test_flash_attention_of_a_row_equals_each_example_alone() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from stargate.actors.modeling.attention import has_varlen
    from tests.gpu.steps.packing import largest_gaps

    probe = torch.zeros(1, 4, 1, 64, device="cuda", dtype=torch.bfloat16)
    assert has_varlen(probe, probe)
    logits, gradients = largest_gaps("cuda")
    assert logits < 0.02
    assert gradients < 0.03
