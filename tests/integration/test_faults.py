"""Processes of a run are killed with SIGKILL in the middle of their work: the run finishes.

One run meets all of it, because starting engines is what takes the time. What vLLM, Ray, DeepSpeed
and the operating system really do is the point; who is replaced when, and how often, is shown with
fakes in tests/unit/actors/runtime/test_supervisor.py.
"""

import asyncio
import json
from pathlib import Path

import psutil
import pytest

from stargate.benchmarks.chaos_records import examine
from stargate.benchmarks.processes import KINDS, WORKERS, processes_of
from stargate.config.files import load_config
from stargate.launch.setup import prepare
from stargate.records.store import RunStore
from tests.integration.run_process import Run

pytestmark = [pytest.mark.integration, pytest.mark.engines]


def parent_of(pid: int) -> psutil.Process:
    return psutil.Process(psutil.Process(pid).ppid())


def test_a_run_outlives_the_death_of_every_kind_of_process(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        "rollout.max_concurrent_dialogues=3",  # so that some are under way when others are done
        "trainer.num_ranks=2",
        "trainer.micro_batch_size=1",
        "trainer.num_epochs=4",
        "scorer.dtype=float32",  # scores are compared to the last digits
    )
    # Both at once, in the middle of dialogues: an actor, and vLLM's core behind a living one.
    run.wait(lambda: list(tmp_path.glob("*/t0/dialogues/part-*.parquet")))
    # All that import vLLM or torch were forked, with that done: actors, and vLLM's cores.
    found = processes_of(run.dir)
    assert {one.kind for one in found} == set(KINDS) - set(WORKERS)
    pids = {one.pid for one in found}
    # One that an actor has just started, and that is not yet what it will be, looks like the actor.
    parents = {parent.pid: parent.cmdline() for parent in map(parent_of, pids)}
    servers = [" ".join(line) for pid, line in parents.items() if pid not in pids]
    assert len(servers) == 1 and "fork_server" in servers[0], servers
    run.kill("questioner")
    run.kill("roleplayer-core")
    run.wait_for_line("roleplayer-0 is back")
    run.wait_for_line("questioner-0 is back after .*, with weights version 0$")
    run.wait_for_line("score: ")
    run.kill("scorer")
    # A rank dies, the other one hangs; an engine dies that must then take what is being trained.
    run.wait_for_line("train: [0-9]+ steps")
    assert run.kill("trainer").post == "trainer-1"
    run.kill("questioner-core")
    output = run.finish()
    assert run.process.returncode == 0, output
    assert run.left_over() == []
    assert "Traceback" not in output

    summary = json.loads((run.dir / "summary.json").read_text())
    restarts = {role: entry["count"] for role, entry in summary["restarts"].items()}
    assert restarts == {"questioner": 2, "roleplayer": 1, "scorer": 1, "trainer": 1}
    assert summary["resent"]["questioner"] + summary["resent"]["roleplayer"] >= 1
    assert summary["dropped"] == {}
    # One engine takes no longer than all of them did: how long that is depends on the machine.
    for role, entry in summary["restarts"].items():
        assert entry["longest_s"] < 1.5 * summary["stages"]["setup"]["seconds"], (role, output)
    assert "training m1 begins again" in output
    assert "died and started again: " in output
    log = (run.dir / "logs" / "driver.log").read_text()
    assert log.count("questioner-0 is back after") == 2
    assert "vLLM's core died" in log

    # Ids, K, seeds and weights versions as drawn; scores and selections as made again, in peace.
    prepared = prepare(load_config(run.dir / "config.yaml"), print)
    found = asyncio.run(examine(prepared, RunStore(run.dir), num_dropped=0))
    assert (found.lost, found.duplicated) == (0, 0)
    assert found.selection_consistent, found
