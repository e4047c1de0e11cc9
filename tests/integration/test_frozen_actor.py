"""An actor of Ray's that SIGSTOP has stopped: its process is ended, another takes its place."""

import os
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.engines]

PROGRAM = """
import asyncio, os, signal
import ray
from stargate.actors.rpc.remote import ActorDied, remote
from stargate.actors.runtime import actor_slots
from stargate.actors.runtime.actor_slots import ActorSlot, HeldWeights
from stargate.actors.runtime.spawn import actor_class, start_ray
from stargate.actors.runtime.supervisor import Supervisor

class Actor:
    async def start(self): pass
    async def pid(self): return os.getpid()
    async def work(self): await asyncio.Event().wait()

async def main():
    hire = lambda: actor_class(Actor, 0, {}).remote()
    async def hired(): return [hire()]
    places = [hire()]
    slot = ActorSlot("scorer", places, (0,), hired, lambda actor: actor.pid.remote())
    supervisor = Supervisor([slot], HeldWeights("base"), 1, ray.kill, print)
    stopped = await remote(places[0].pid.remote())
    working = asyncio.ensure_future(remote(places[0].work.remote()))
    os.kill(stopped, signal.SIGSTOP)
    supervisor.watch()
    try:
        await working
    except ActorDied:
        print("pid", stopped)
    await slot.renewing
    assert await remote(places[0].pid.remote()) != stopped
    await supervisor.close()

actor_slots._PING_SECONDS = 1.0
start_ray(0)
asyncio.run(main())
ray.shutdown()
"""


def test_a_stopped_actor_is_ended_and_what_waits_for_it_is_told() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr
    assert "scorer-0 died: scorer-0 hangs" in ran.stdout
    assert "scorer-0 is back" in ran.stdout
    stopped = int(ran.stdout.partition("pid ")[2].split()[0])
    until = time.monotonic() + 30
    while psutil.pid_exists(stopped) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(stopped)
