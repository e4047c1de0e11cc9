"""What is not set depends on the device: nothing of a CPU's settings throttles a GPU."""

from typing import Any

import pytest
from pydantic import ValidationError

from stargate.config.run import EngineConfig, RunConfig, ScorerConfig, TrainerConfig
from stargate.resources.cluster import needs

ENGINE = {"num_engines": 2, "max_num_seqs": 100}


def test_a_config_of_ones_own_scores_and_trains_on_gpus() -> None:
    found = {need.role: need.num_gpus for need in needs(RunConfig(device="cuda"), device="cuda")}
    assert found == {"questioner": 1, "roleplayer": 1, "scorer": 1, "trainer": 1}
    assert {need.num_gpus for need in needs(RunConfig(), device="cpu")} == {0}


def test_dialogues_under_way() -> None:
    config = RunConfig()
    assert config.num_concurrent_dialogues("cpu") == 154  # 1.2 x (64 + 64)
    assert config.num_concurrent_dialogues("cuda") == 615  # 1.2 x (256 + 256)
    own: dict[str, Any] = {
        "questioner": {"engine": ENGINE},
        "roleplayer": {"engine": {"num_engines": 3}},
    }
    assert RunConfig.model_validate(own).num_concurrent_dialogues("cuda") == 1162
    own["rollout"] = {"max_concurrent_dialogues": 5}
    assert RunConfig.model_validate(own).num_concurrent_dialogues("cuda") == 5


def test_an_api_has_places_too() -> None:
    oracle = {"type": "openai", "base_url": "http://127.0.0.1/v1", "model": "m"}
    roleplayer = {"type": "api", "oracle": {**oracle, "limits": {"max_concurrency": 36}}}
    config = RunConfig.model_validate({"roleplayer": roleplayer})
    assert config.num_concurrent_dialogues("cpu") == 120  # 1.2 x (64 + 36)


def test_a_pass_of_the_scorer() -> None:
    assert ScorerConfig().batch_tokens("cuda") > ScorerConfig().batch_tokens("cpu")
    assert ScorerConfig(max_batch_tokens=7).batch_tokens("cuda") == 7


def test_places_of_an_engine() -> None:
    assert EngineConfig().num_places("cuda") > EngineConfig().num_places("cpu")


def test_ranks_share_no_gpu() -> None:
    with pytest.raises(ValidationError, match=r"must be 0 or 1 with 2 ranks, got 0.5: NCCL"):
        TrainerConfig(num_ranks=2, num_gpus_per_rank=0.5)
    assert TrainerConfig(num_gpus_per_rank=0.5).num_gpus_per_rank == 0.5
    with pytest.raises(ValidationError, match="num_gpus_per_rank"):
        TrainerConfig(num_gpus_per_rank=2)  # a rank computes on one
