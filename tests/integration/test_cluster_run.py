"""A run on a real Ray cluster of two nodes (raylets of their own), sent through its job server.

The nodes are on one machine and so see the same files: `cluster.shared_storage=never` makes them
send what nodes of different machines would have to.
"""

import contextlib
import json
import re
import time
from pathlib import Path

import psutil
import pytest

from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from tests.integration.ray_cluster import RayCluster, ray_cluster
from tests.integration.run_process import SMALL, Command

pytestmark = [pytest.mark.integration, pytest.mark.engines]

_SHARED_MEMORY = Path("/dev/shm")


def processes(cluster: RayCluster, words: str) -> list[str]:
    """Command lines of the cluster's processes that match.

    They are below one of its nodes, or know its token: a process that names itself, as Ray's and
    vLLM's do, may have written over its environment, and one whose parent has died is below nobody.
    """
    below: set[int] = set()
    for node in cluster.nodes:
        with contextlib.suppress(psutil.NoSuchProcess):
            below |= {child.pid for child in psutil.Process(node.pid).children(recursive=True)}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if re.search(words, line) and (
                int(process.name) in below
                or cluster.token.encode() in (process / "environ").read_bytes()
            ):
                found.append(line)
        except OSError:
            continue  # it ended while we looked, or is another user's
    return found


def test_a_job_uses_both_nodes_and_leaves_them_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, landed = tmp_path / "runs", tmp_path / "landed"
    staged = set(_SHARED_MEMORY.glob("stargate-weights-*"))
    with ray_cluster([1, 2], dashboard=True) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        run = Command(
            *("submit", "cpu_demo", "--address", cluster.dashboard, *SMALL),
            *(f"runs_dir={runs}", "cluster.strategy=spread", "cluster.shared_storage=never"),
            *("cluster.wait_s=60", "scorer.num_scorers=1", f"records.uri=file://{landed}"),
            *("trainer.num_ranks=2", "trainer.micro_batch_size=1"),
        )
        output = run.finish()
        assert run.process.returncode == 0, output
        actors = r"ray::(Engine|Scorer|TrainerRank|NodeAgent)|VLLM"
        deadline = time.monotonic() + 15
        while (alive := processes(cluster, actors)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert alive == []
        assert all(node.poll() is None for node in cluster.nodes), "the cluster has ended"
    nodes = dict(re.findall(r"^cluster: node (.+?): (\S.*)$", output, re.MULTILINE))
    seats = sorted(tuple(sorted(actors.split(", "))) for actors in nodes.values())
    # The Questioner's engine on one node, the Roleplayer's on the other, a trainer rank on each.
    assert len(seats) == 2, output
    assert all(any(actor.startswith("trainer-") for actor in seat) for seat in seats), output
    assert not any({"questioner-0", "roleplayer-0"} <= set(seat) for seat in seats), output
    check_records(runs)
    [log] = runs.glob("*/logs/driver.log")
    # The Questioner has the larger node, which is not the driver's.
    assert re.search(r"sent m1 \(\d+ MB\) to 1 node\(s\) in", log.read_text()), output
    check_landed(runs, landed, tmp_path / "elsewhere")
    assert set(_SHARED_MEMORY.glob("stargate-weights-*")) <= staged


def check_landed(runs: Path, landed: Path, elsewhere: Path) -> None:
    """What landed on shared storage is the whole run, for a machine that has nothing of it."""
    [root] = runs.iterdir()
    fetched = elsewhere / root.name
    resume = Command("resume", f"file://{landed / root.name}", "--to", str(fetched))
    output = resume.finish()
    assert resume.process.returncode == 0, output
    assert "has finished; there is nothing to do" in output
    check_records(elsewhere)
    for scope, table in (("t0", "scores"), ("t0", "examples"), ("eval-m1", "dialogues")):
        rows = list(RunStore(fetched).read(scope, table))
        assert rows and rows == list(RunStore(root).read(scope, table))
    name = "models/m1/model.safetensors"
    assert (fetched / name).read_bytes() == (root / name).read_bytes()


def check_records(runs: Path) -> None:
    """The run is whole, and m_1 got from the trainer's node to here and into the other engine."""
    [root] = runs.iterdir()
    summary = json.loads((root / "summary.json").read_text())
    assert summary["status"] == "finished"
    store = RunStore(root)
    assert {dialogue_from_row(r).policy_version for r in store.read("t0", "dialogues")} == {0}
    after = {dialogue_from_row(r).policy_version for r in store.read("eval-m1", "dialogues")}
    assert after == {1}, "the engine on the other node does not report the pushed weights"
    assert (root / "models/m1/model.safetensors").stat().st_size > 100_000_000
    assert (root / "models/m1/tokenizer.json").is_file()
    assert sorted(path.name for path in (root / "models").iterdir()) == ["m1"]
