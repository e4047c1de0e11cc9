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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stargate.benchmarks.card import Measurement, Ratio, Say
from stargate.benchmarks.chaos_processes import (
    DRIVER,
    KINDS,
    WORKERS,
    Found,
    left_over,
    processes_of,
)

if TYPE_CHECKING:
    from stargate.config.run import RunConfig

HELP = "random kills over all kinds of processes in one run: nothing may be lost"
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
    add("--kills", type=int, default=30, help="processes to kill (default: %(default)s)")
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
    add("--config", default="cpu_demo", help="config to run (default: %(default)s)")
    add("--iterations", type=int, default=4, help="default: %(default)s")
    add("--tasks", type=int, default=6, help="tasks to train on (default: %(default)s)")
    add("--personas", type=int, default=4, help="personas of each (default: %(default)s)")
    add("--dialogues", type=int, default=4, help="dialogues of each pair (default: %(default)s)")
    add("--keep", type=Path, metavar="DIR", help="keep the run's directory, in this folder")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the config")


def measure(args: argparse.Namespace, say: Say) -> Measurement:
    """Runs, kills, examines."""
    from stargate.errors import ConfigError

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
    with _folder(args.keep) as folder:
        from stargate.config.files import load_config

        config = load_config(args.config, [*overrides, f"runs_dir={folder}"])
        chaos = Chaos(kinds, args.kills, args.gap, random.Random(args.seed), say)
        with chaos:
            chaos.run(args.config, [*overrides, f"runs_dir={folder}"])
        return asyncio.run(_examine(chaos, config, say))


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="stargate-chaos-") as name:
        yield Path(name)


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
            if _READY.match(line):
                self.ready = self.last_line

    def end(self) -> int:
        """Waits for the end and for the last line. The exit code."""
        code = self.process.wait()
        self._reader.join()
        return code


class Chaos:
    """A run, and the kills in it. Ends all of the run's processes when it is left."""

    def __init__(
        self, kinds: list[str], num_kills: int, gap: float, rng: random.Random, say: Say
    ) -> None:
        self.kills: list[Kill] = []
        self.resumes: list[float] = []  # seconds from a driver's end until all actors were there
        self.starts: list[float] = []  # seconds that these starts took by themselves
        self.run_dir = Path()
        self.seconds = 0.0
        self._kinds, self._num_kills = kinds, num_kills
        self._gap = gap
        self._rng = rng
        self._say = say
        self._driver: Driver | None = None

    def __enter__(self) -> "Chaos":
        return self

    def __exit__(self, *error: object) -> None:
        if self._driver is not None and self._driver.process.poll() is None:
            self._driver.process.send_signal(signal.SIGTERM)
            self._driver.end()

    def run(self, config: str, overrides: list[str]) -> None:
        """Runs to the end. Raises EngineError when the run fails or hangs."""
        started = time.monotonic()
        self._driver = Driver(["run", config, *overrides])
        self._await_ready(self._driver)
        # A kind of which no process is there when its turn comes is made up for by others.
        while (num_left := self._num_kills - len(self.kills)) > 0:
            if not self._kill_in_turn(_victims(self._kinds, num_left, self._rng)):
                break
        self._await(self._driver, lambda: False)
        if len(self.kills) < self._num_kills:
            self._say("the run ended before all kills: give it more tasks, personas or dialogues")
        self.seconds = time.monotonic() - started
        self._note_recoveries(self._driver)

    def _kill_in_turn(self, victims: list[str]) -> bool:
        """Kills one process of each kind in a list. False when the run has ended before."""
        for victim in victims:
            assert self._driver is not None
            if self._driver.process.poll() is not None:
                return False
            twice = self._rng.randrange(_TWICE_IN) == 0
            if not twice and not self._pause(self._driver):
                return False
            if victim == DRIVER:
                self._restart_driver(self._driver)
            else:
                self._kill(self._driver, victim)
        return True

    def _pause(self, driver: Driver) -> bool:
        """Until nobody is missing and some more seconds. False when the run has ended."""
        if not self._await(driver, self._all_back):
            return False
        until = time.monotonic() + self._rng.uniform(0.0, self._gap)
        return self._await(driver, lambda: time.monotonic() >= until)

    def _kill(self, driver: Driver, kind: str) -> None:
        """Kills a process of a kind; of those that are there and not yet on their way out."""
        missing = {kill.post for kill in self.kills if kill.missing}

        def candidates() -> list[Found]:
            found = processes_of(self.run_dir)
            return [one for one in found if one.kind == kind and one.post not in missing]

        if not self._await(driver, lambda: bool(candidates()) or self._all_back()):
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

    def _restart_driver(self, driver: Driver) -> None:
        """Kills the driver, waits for its processes to end, and goes on with `stargate resume`."""
        self._note_recoveries(driver)
        for kill in self.kills:
            kill.missing = False
        killed = time.monotonic()
        driver.process.kill()
        driver.end()
        self.kills.append(Kill(DRIVER, DRIVER, killed, missing=False))
        self._say(f"kill {len(self.kills)}: driver (pid {driver.process.pid})")
        while left_over(self.run_dir) and time.monotonic() < killed + _END_SECONDS:
            time.sleep(_POLL_SECONDS)
        self._driver = Driver(["resume", str(self.run_dir)])
        self._await_ready(self._driver)
        if self._driver.ready is not None:
            self.resumes.append(self._driver.ready - killed)
            self.starts.append(_setup_seconds(self._driver.lines))

    def _await_ready(self, driver: Driver) -> None:
        self._await(driver, lambda: driver.ready is not None)
        for line in list(driver.lines):
            if found := _RUN_DIR.match(line):
                self.run_dir = Path(found[1])

    def _all_back(self) -> bool:
        return not any(kill.missing for kill in self.kills)

    def _note_recoveries(self, driver: Driver) -> None:
        """Looks which posts the run has said to be filled again."""
        now = time.monotonic()
        for line in driver.lines[driver.num_read :]:
            driver.num_read += 1
            if found := _BACK.match(line):
                self._say(line)
                for kill in self.kills:
                    if kill.missing and _is_of(kill.post, found[1]):
                        kill.seconds, kill.missing = now - kill.at, False

    def _await(self, driver: Driver, met: Callable[[], bool]) -> bool:
        """Until `met()`. False when the run has ended well before; EngineError when it failed."""
        from stargate.errors import EngineError

        while True:
            self._note_recoveries(driver)  # when they happen: their time counts
            if met():
                return True
            if driver.process.poll() is not None:
                if code := driver.end():
                    last = "\n".join(driver.lines[-15:])
                    raise EngineError(f"the run ended with {code} ({self.run_dir}):\n{last}")
                return False
            if time.monotonic() - driver.last_line > _SILENCE_SECONDS:
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


def _setup_seconds(lines: list[str]) -> float:
    """How long the actors took to start, as the run said."""
    return next(float(found[1]) for line in lines if (found := _READY.match(line)))


async def _examine(chaos: Chaos, config: "RunConfig", say: Say) -> Measurement:
    from stargate.benchmarks.chaos_records import examine
    from stargate.launch.setup import prepare
    from stargate.records.store import RunStore

    store = RunStore(chaos.run_dir)
    summary = store.read_json("summary.json") or {}
    say("scoring what was recorded once more")
    found = await examine(prepare(config, say), store, sum(summary["dropped"].values()))
    for kind in ("altered", "misselected", "misscored"):
        for name in getattr(found, kind):
            say(f"{kind}: {name}")
    took = {
        kind: [k.seconds for k in chaos.kills if k.kind == kind and k.seconds is not None]
        for kind in KINDS
    }
    beyond = [
        all_of_it - start for all_of_it, start in zip(chaos.resumes, chaos.starts, strict=True)
    ]
    figures: dict[str, Any] = {
        "kills": len(chaos.kills),
        "lost": found.lost,
        "duplicated": found.duplicated,
        "selection_consistent": found.selection_consistent,
        "longest_recovery_s": max((max(times) for times in took.values() if times), default=None),
        "kills_by_kind": dict(Counter(kill.kind for kill in chaos.kills)),
        "longest_recovery_s_by_kind": {kind: max(times) for kind, times in took.items() if times},
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
