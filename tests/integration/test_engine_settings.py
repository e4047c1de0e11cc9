"""What vLLM itself makes of our arguments; no engine is started."""

from pathlib import Path

import pytest

from stargate.actors.engines.spec import EngineSpec
from stargate.actors.engines.startup import vllm_config
from stargate.config.run import EngineConfig
from stargate.resources.preflight import vllm_build

pytestmark = pytest.mark.integration


@pytest.mark.skipif(vllm_build() != "cpu", reason="the numbers are those of vLLM's CPU build")
def test_a_step_has_as_many_tokens_as_vllms_own_class_gives_it(tiny: Path) -> None:
    """A GPU's arguments leave the number to vLLM, which asks in which context it was called.

    On CPUs it gives 4,096 tokens for texts in bulk, 2,048 where it is told nothing.
    """
    pytest.importorskip("vllm")
    config = EngineConfig(max_model_len=512, max_num_seqs=64)
    made = vllm_config(EngineSpec("questioner", str(tiny), config, device="cuda"))
    assert made.scheduler_config.max_num_batched_tokens == 4096
    own = config.model_copy(update={"max_num_batched_tokens": 1024})
    made = vllm_config(EngineSpec("questioner", str(tiny), own, device="cuda"))
    assert made.scheduler_config.max_num_batched_tokens == 1024
