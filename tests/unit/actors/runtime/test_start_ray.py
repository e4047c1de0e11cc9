"""How a run starts a Ray of its own."""

from typing import Any

import pytest

from stargate.actors.runtime import spawn


def test_ray_has_the_cores_that_we_may_use_and_a_folder_for_its_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It starts as many workers as it has cores: 128 where a container may use two of them."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(spawn.ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(spawn, "usable_cores", lambda: 2)
    monkeypatch.setattr(spawn, "socket_folder", lambda: "/short")
    spawn.start_ray(3)
    assert (given["num_cpus"], given["num_gpus"]) == (2, 3)
    assert given["_temp_dir"] == "/short/ray"
    assert (given["address"], given["_node_ip_address"]) == ("local", "127.0.0.1")
