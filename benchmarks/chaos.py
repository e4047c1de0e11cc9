"""Kills processes of one run at random, with SIGKILL, and looks at what the run recorded.

    stargate run -> every few seconds one process of a random kind is killed: an engine's actor,
    vLLM's core behind it, a scorer, a trainer rank, or the driver itself
    (then: stargate resume) -> the run finishes -> its records against those of an undisturbed run

Kinds come in rounds, each kind once a round, in random order, so that every kind has its share;
now and then two processes are killed at once. K, seeds and weights versions are compared with what
is drawn for them; scores with those that a scorer makes of the same dialogues afterwards, in peace;
selections with those that follow from the scores. It takes about 25 minutes on two cores.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stargate.benchmarks.chaos_records import examine
from stargate.benchmarks.processes import (
    DRIVER,
    KINDS,
    WORKERS,
    Found,
    left_over,
    processes_of,
)
from stargate.benchmarks.results import Measurement, Ratio, Say
from stargate.config.files import load_config
from stargate.config.run import RunConfig
from stargate.errors import ConfigError, EngineError
from stargate.launch.setup import prepare
from stargate.records.store import RunStore

RATIOS: Mapping[str, Ratio] = {}

_COMMAND = (sys.executable, "-m", "stargate.launch.cli")
# One kill in so many is followed by another one at once.
_TWICE_IN = 5
# Seconds without any line from the run after which it hangs.
_SILENCE_SECONDS = 600.0
# Seconds that a killed driver's processes have to notice it.
_END_SECONDS = 120.0
_POLL_SECONDS = 0.1
_BACK = re.compile(r"^(\S+) is back after [0-9.]+ s")
_RUN_DIR = re.compile(r"^run directory: (.+)$")
_READY = re.compile(r"^setup: done in ([0-9.]+) s")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    add = parser.add_argument
    add("--kills", type=int, default=30, help="processes to kill")
    add("--seed", type=int, default=0, help="of the kills, not of the run")
    add("--gap", type=float, default=10.0, help="most seconds between recovery and next kill")
    present = [kind for kind in (*KINDS, DRIVER) if kind not in WORKERS]
    add(
        "--kinds",
        default=",".join(present),
        metavar="LIST",
        help=f"whom to kill (default: all but {', '.join(WORKERS)}, which an engine has only with "
        "tensor parallelism)",
    )
    add("--config", default="cpu_demo", help="config to run")
    add("--iterations", type=int, default=4, help="of the run")
    add("--tasks", type=int, default=6, help="tasks to train on")
    add("--personas", type=int, default=4, help="personas of each")
    add("--dialogues", type=int, default=4, help="dialogues of each pair")
    add("--keep", type=Path, metavar="DIR", help="keep the run's directory, in this folder")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config")


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Runs, kills, examines."""
    kinds = args.kinds.split(",")
    if unknown := set(kinds) - {*KINDS, DRIVER}:
        raise ConfigError(f"--kinds: unknown {', '.join(sorted(unknown))}; known: {KINDS}")
    overrides = [
        f"data.train={{tasks: {args.tasks}, personas: {args.personas}}}",
        "data.test={tasks: 2, personas: 2}",
        f"rollout.num_dialogues={args.dialogues}",
        f"schedule.num_iterations={args.iterations}",
        # Whether a run survives is asked here; that restarts are limited is another matter.
        f"schedule.max_restarts={10 * args.kills}",
        "scorer.dtype=float32",  # so that scores can be compared to the last digits
        "evaluation.num_dialogues=1",
        "evaluation.judge=null",
        "trainer.num_ranks=2",
        "trainer.micro_batch_size=1",
        *args.set,
    ]
    temporary = tempfile.TemporaryDirectory(prefix="stargate-chaos-")
    with nullcontext(args.keep) if args.keep is not None else temporary as folder:
        overrides.append(f"runs_dir={folder}")
        config = load_config(args.config, overrides)
        chaos = Chaos(kinds, args.kills, args.gap, random.Random(args.seed), say)
        chaos.run(args.config, overrides)
        return asyncio.run(_examine(chaos, config, say))


@dataclass
class Kill:
    """One process that was killed. `seconds` until its post was filled again: None as long as it is
    not, and for ever if the driver was killed meanwhile; then nobody is `missing` any more.
    """

    kind: str
    post: str
    at: float
    seconds: float | None = None
    missing: bool = True


@dataclass
class Driver:
    """One `stargate` command: its lines are read as they come."""

    arguments: list[str]
    lines: list[str] = field(default_factory=list)
    last_line: float = field(default_factory=time.monotonic)
    ready: float | None = None  # when all actors had started
    start_seconds: float = 0.0  # what that took, as the run said
    run_dir: Path = Path()
    num_read: int = 0  # lines that were looked at

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [*_COMMAND, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last_line = time.monotonic()
            self.lines.append(line.rstrip("\n"))
            if found := _RUN_DIR.match(line):
                self.run_dir = Path(found[1])
            elif found := _READY.match(line):
                self.start_seconds, self.ready = float(found[1]), self.last_line

    def end(self) -> int:
        """Waits for the end and for the last line. The exit code."""
        code = self.process.wait()
        self._reader.join()
        return code


class Chaos:
    """A run, and the kills in it."""

    _driver: Driver  # of the command that goes on: run, or the last resume

    def __init__(
        self, kinds: list[str], num_kills: int, gap: float, rng: random.Random, say: Say
    ) -> None:
        self.kills: list[Kill] = []
        self.resumes: list[float] = []  # seconds from a driver's end until all actors were there
        self.starts: list[float] = []  # seconds that these starts took by themselves
        self.run_dir = Path()
        self.seconds = 0.0
        self._kinds, self._num_kills, self._gap = kinds, num_kills, gap
        self._rng, self._say = rng, say

    def run(self, config: str, overrides: list[str]) -> None:
        """Runs to the end. Raises EngineError when the run fails or hangs.

        Whatever happens, no process of the run is left.
        """
        started = time.monotonic()
        self._driver = Driver(["run", config, *overrides])
        try:
            self._kill_all()
        finally:
            if self._driver.process.poll() is None:
                self._driver.process.send_signal(signal.SIGTERM)
                self._driver.end()
        self.seconds = time.monotonic() - started

    def _kill_all(self) -> None:
        self._await_ready()
        # A kind of which no process is there when its turn comes is made up for by others.
        while (num_left := self._num_kills - len(self.kills)) > 0:
            if not self._kill_in_turn(_victims(self._kinds, num_left, self._rng)):
                break
        self._await(lambda: False)
        if len(self.kills) < self._num_kills:
            self._say("the run ended before all kills: give it more tasks, personas or dialogues")
        self._note_recoveries()

    def _kill_in_turn(self, victims: list[str]) -> bool:
        """Kills one process of each kind in a list. False when the run has ended before."""
        for victim in victims:
            if self._driver.process.poll() is not None:
                return False
            twice = self._rng.randrange(_TWICE_IN) == 0
            if not twice and not self._pause():
                return False
            if victim == DRIVER:
                self._restart_driver()
            else:
                self._kill(victim)
        return True

    def _pause(self) -> bool:
        """Until nobody is missing and some more seconds. False when the run has ended."""
        if not self._await(self._all_back):
            return False
        until = time.monotonic() + self._rng.uniform(0.0, self._gap)
        return self._await(lambda: time.monotonic() >= until)

    def _kill(self, kind: str) -> None:
        """Kills a process of a kind; of those that are there and not yet on their way out."""
        missing = {kill.post for kill in self.kills if kill.missing}

        def candidates() -> list[Found]:
            found = processes_of(self.run_dir)
            return [one for one in found if one.kind == kind and one.post not in missing]

        if not self._await(lambda: bool(candidates()) or self._all_back()):
            return
        there = candidates()
        if not there:
            self._say(f"no {kind} process is there to kill")
            return
        victim = self._rng.choice(there)
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended since we looked: no kill of ours
            self._say(f"{victim.kind} of {victim.post} (pid {victim.pid}) had just ended")
            return
        self.kills.append(Kill(kind, victim.post, time.monotonic()))
        self._say(f"kill {len(self.kills)}: {kind} of {victim.post} (pid {victim.pid})")

    def _restart_driver(self) -> None:
        """Kills the driver, waits for its processes to end, and goes on with `stargate resume`."""
        self._note_recoveries()
        for kill in self.kills:
            kill.missing = False
        killed = time.monotonic()
        self._driver.process.kill()
        self._driver.end()
        self.kills.append(Kill(DRIVER, DRIVER, killed, missing=False))
        self._say(f"kill {len(self.kills)}: driver (pid {self._driver.process.pid})")
        while left_over(self.run_dir) and time.monotonic() < killed + _END_SECONDS:
            time.sleep(_POLL_SECONDS)
        self._driver = Driver(["resume", str(self.run_dir)])
        self._await_ready()
        if self._driver.ready is not None:
            self.resumes.append(self._driver.ready - killed)
            self.starts.append(self._driver.start_seconds)

    def _await_ready(self) -> None:
        self._await(lambda: self._driver.ready is not None)
        self.run_dir = self._driver.run_dir

    def _all_back(self) -> bool:
        return not any(kill.missing for kill in self.kills)

    def _note_recoveries(self) -> None:
        """Looks which posts the run has said to be filled again."""
        now = time.monotonic()
        for line in self._driver.lines[self._driver.num_read :]:
            self._driver.num_read += 1
            if found := _BACK.match(line):
                self._say(line)
                for kill in self.kills:
                    if kill.missing and _is_of(kill.post, found[1]):
                        kill.seconds, kill.missing = now - kill.at, False

    def _await(self, met: Callable[[], bool]) -> bool:
        """Until `met()`. False when the run has ended well before; EngineError when it failed."""
        while True:
            self._note_recoveries()  # when they happen: their time counts
            if met():
                return True
            if self._driver.process.poll() is not None:
                if code := self._driver.end():
                    last = "\n".join(self._driver.lines[-15:])
                    raise EngineError(f"the run ended with {code} ({self.run_dir}):\n{last}")
                return False
            if time.monotonic() - self._driver.last_line > _SILENCE_SECONDS:
                raise EngineError(f"the run hangs: no line for {_SILENCE_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)


def _victims(kinds: list[str], num_kills: int, rng: random.Random) -> list[str]:
    """Every kind once a round, in random order."""
    victims: list[str] = []
    while len(victims) < num_kills:
        victims += rng.sample(kinds, len(kinds))
    return victims[:num_kills]


def _is_of(post: str, name: str) -> bool:
    """Whether what the run calls `name` is this post. The trainer's ranks have one name."""
    return post == name or post.startswith(f"{name}-")


async def _examine(chaos: Chaos, config: RunConfig, say: Say) -> Measurement:
    store = RunStore(chaos.run_dir)
    summary = store.read_json("summary.json") or {}
    say("scoring what was recorded once more")
    found = await examine(prepare(config, say), store, sum(summary["dropped"].values()))
    for kind in ("altered", "misselected", "misscored"):
        for name in getattr(found, kind):
            say(f"{kind}: {name}")
    longest: dict[str, float] = {}
    for kill in chaos.kills:
        if kill.seconds is not None:
            longest[kill.kind] = max(kill.seconds, longest.get(kill.kind, 0.0))
    beyond = [whole - start for whole, start in zip(chaos.resumes, chaos.starts, strict=True)]
    figures: dict[str, Any] = {
        "kills": len(chaos.kills),
        "lost": found.lost,
        "duplicated": found.duplicated,
        "selection_consistent": found.selection_consistent,
        "longest_recovery_s": max(longest.values(), default=None),
        "kills_by_kind": dict(Counter(kill.kind for kill in chaos.kills)),
        "longest_recovery_s_by_kind": longest,
        "longest_resume_s": max(chaos.resumes, default=None),
        "longest_resume_beyond_start_s": max(beyond, default=None),
        "num_dialogues": summary["rollout"]["num_dialogues"],
        "resent": summary["resent"],
        "dropped": summary["dropped"],
        "sittings": summary["sittings"],
        "largest_score_difference": found.largest_difference,
        "run_seconds": chaos.seconds,
    }
    return Measurement(ratios={}, figures=figures)
