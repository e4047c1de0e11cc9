"""What is looked at before a command can play."""

from pathlib import Path

import pytest

from stargate.config.run import RunConfig
from stargate.errors import ModelError
from stargate.launch import setup


@pytest.mark.parametrize("on_cluster", [True, False])
def test_the_driver_needs_weights_only_where_actors_share_its_machine(
    monkeypatch: pytest.MonkeyPatch, on_cluster: bool
) -> None:
    asked: list[bool] = []

    def resolve(name: str, *, trust_remote_code: bool, weights: bool) -> Path:
        asked.append(weights)
        return Path("/models") / name

    def resolve_roleplayer(config: RunConfig, *, weights: bool) -> Path:
        asked.append(weights)
        raise ModelError("enough was seen")

    monkeypatch.setattr(setup, "cluster_address", lambda *_: "auto" if on_cluster else None)
    monkeypatch.setattr(setup, "resolve_model", resolve)
    monkeypatch.setattr(setup, "resolve_roleplayer", resolve_roleplayer)
    with pytest.raises(ModelError, match="enough was seen"):
        setup.prepare(RunConfig(device="cpu"), lambda line: None)
    assert asked == [not on_cluster] * 2
