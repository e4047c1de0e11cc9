"""Nodes of a real Ray cluster: room on them, and one that is killed. Actors without engines."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ray_cluster import RayCluster, ray_cluster

pytestmark = [pytest.mark.integration, pytest.mark.engines]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head where nothing is placed, and two nodes with one CPU."""
    with ray_cluster([0, 1, 1]) as started:
        yield started


def play(name: str, cluster: RayCluster, folder: Path) -> str:
    processes = [process.pid for process in cluster.nodes]
    nodes = json.dumps({"address": cluster.address, "processes": processes})
    command = [sys.executable, "-m", "tests.integration.cluster_story", name, nodes, str(folder)]
    done = subprocess.run(
        command,
        env={**os.environ, **cluster.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_what_does_not_fit_is_refused_before_anything_starts(
    cluster: RayCluster, tmp_path: Path
) -> None:
    assert "the story ends well" in play("refused", cluster, tmp_path)


def test_an_actor_of_a_killed_node_goes_on_elsewhere_with_the_current_weights(
    cluster: RayCluster, tmp_path: Path
) -> None:
    before = set(Path("/dev/shm").glob("stargate-weights-*"))
    assert "the story ends well" in play("node-lost", cluster, tmp_path / "run")
    left = set(Path("/dev/shm").glob("stargate-weights-*")) - before
    # The killed node's agent had nothing there: what it had sent was removed after use.
    assert left == set()
