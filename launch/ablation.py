"""An ablation from start to end: one set of actors for all conditions, then one comparison.

    config -> plan (checked) -> ABLATION directory -> actors
       -> for each condition: share what m_0 made -> its run, in ABLATION/CONDITION
    -> actors without a trainer -> own_response/evaluations/weaker_roleplayer
    -> ablation.json, report.html

ablation.json is written anew after each condition, from what is on disk.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stargate.config.algorithm import StarGateConfig
from stargate.config.files import load_config
from stargate.config.run import RunConfig
from stargate.errors import ConfigError, DataError, DivergenceError, StargateError
from stargate.evaluation.ablation import (
    ABLATION_FILE,
    PAPER_CONDITIONS,
    REFERENCE,
    WEAKER,
    Condition,
    Outcome,
    Status,
    ablation_json,
    condition_config,
    conditions_of,
    observe_last,
    share,
    training_configs,
    weak_roleplayer,
)
from stargate.evaluation.measures import EVALUATION_FILE
from stargate.launch.eval_session import run_evaluation
from stargate.launch.provenance import keep_inputs
from stargate.launch.session import Session, fill_run_dir, make_dir, timed_dir, tracked
from stargate.launch.setup import Prepared, prepare
from stargate.launch.system import RunningSystem, running_system
from stargate.monitoring.progress import Progress, make_progress
from stargate.records.counters import Counters
from stargate.records.files import hold, read_json
from stargate.records.store import RunStore
from stargate.report.ablation import ablation_lines, render_ablation
from stargate.resources.models import pinned

REPORT_FILE = "report.html"
_SHARED_FILE = "shared.json"
# Errors of one condition, after which actors can play the next. Others (a dead engine, a full disk)
# would meet every condition, so they end the ablation.
_OWN_ERRORS = (DivergenceError, DataError)


@dataclass(frozen=True)
class Plan:
    """What is run: the conditions in order, and the configs of those that are trained, by name."""

    config: RunConfig
    conditions: tuple[Condition, ...]
    configs: dict[str, RunConfig]

    @property
    def weak(self) -> tuple[str, ...] | None:
        """The overrides of the weaker Roleplayer, if it is asked for."""
        return next((c.overrides for c in self.conditions if c.name == WEAKER), None)


def plan_ablation(config: RunConfig, names: Sequence[str], weak: Sequence[str]) -> Plan:
    """Checks that the conditions can be run and compared. Raises ConfigError."""
    if not config.evaluation.enabled:
        raise ConfigError("evaluation.enabled must be true: conditions are compared by it")
    if not isinstance(config.algorithm, StarGateConfig):
        raise ConfigError(
            f"algorithm.type is {config.algorithm.type}, but an ablation compares settings of "
            "star_gate: set algorithm={type: star_gate}"
        )
    if config.records.uri is not None:
        raise ConfigError("records.uri: the records of an ablation stay in runs_dir; leave it out")
    conditions = conditions_of(names)
    if WEAKER not in names and weak:
        raise ConfigError(f"--weak-roleplayer is given, but {WEAKER} is not among the conditions")
    if WEAKER in names:
        overrides = weak_roleplayer(config, weak)
        conditions = tuple(
            replace(condition, overrides=overrides) if condition.name == WEAKER else condition
            for condition in conditions
        )
    return Plan(config, conditions, training_configs(config, conditions))


def new_plan(
    name: str | None,
    overrides: Sequence[str],
    conditions: Sequence[str] | None,
    weak: Sequence[str],
) -> Plan:
    """The named config's ablation; `conditions` None: the paper's. Raises ConfigError."""
    if name is None:
        raise ConfigError("name a config, e.g. stargate ablate cpu_learn")
    names = PAPER_CONDITIONS if conditions is None else conditions
    return plan_ablation(load_config(name, overrides), names, weak)


def resumed_plan(root: Path, name: str | None, added: Sequence[str], weak: Sequence[str]) -> Plan:
    """The conditions that the ablation in `root` has, and those that are added to it.

    Raises DataError for what is no ablation, and ConfigError.
    """
    if name is not None:
        raise ConfigError(f"--resume {root} goes on with the config in it: name no other")
    if not (root / ABLATION_FILE).is_file():
        raise DataError(f"{root}: not an ablation: it has no {ABLATION_FILE}")
    before = (read_json(root / ABLATION_FILE) or {}).get("conditions")
    if not isinstance(before, dict) or not all(isinstance(c, dict) for c in before.values()):
        raise DataError(f"{root / ABLATION_FILE}: not what an ablation writes: no conditions")
    known = [str(override) for override in before.get(WEAKER, {}).get("overrides") or ()]
    if known and weak and known != list(weak):
        raise ConfigError(f"--weak-roleplayer: {root} has another one already: {' '.join(known)}")
    return plan_ablation(load_config(root / "config.yaml"), [*before, *added], known or weak)


def run_ablation(plan: Plan, root: Path | None = None, *, accept_changed: bool = False) -> int:
    """Runs what has not finished in `root`; None: in a new directory.

    Returns 0, 130 after Ctrl-C or SIGTERM, else the exit code of the first failure. Raises
    StargateError for what ends all conditions.
    """
    progress = make_progress()
    prepared = prepare(plan.config, progress.say)
    if plan.weak is not None:  # what is wrong with it is said now, not in some hours
        weak = condition_config(plan.config, WEAKER, plan.weak)
        prepare(weak, lambda line: None, training=False)
    new = root is None
    if root is None:
        root = timed_dir(plan.config.runs_dir, f"{plan.config.name}-ablation")
        make_dir(root, prepared.config, "logs")
    progress.say(f"ablation directory: {root}")
    with hold(root):
        keep_inputs(RunStore(root), prepared.inputs, accept_changed, progress.say, new=new)
    ablation = Ablation(plan, prepared, root, progress)
    interrupted = False
    try:
        ablation.write()
        asyncio.run(ablation.train())
        ablation.test_weaker()
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    finally:
        values = ablation.write()
    for line in ablation_lines(values):
        progress.say(line)
    progress.say(f"\n{root / REPORT_FILE}")
    if interrupted:
        progress.say(f"interrupted; this goes on with it: stargate ablate --resume {root}")
        return 130
    return next((error.exit_code for error in ablation.errors.values()), 0)


class Ablation:
    """An ablation in progress. `errors` has what failed, by condition."""

    def __init__(self, plan: Plan, prepared: Prepared, root: Path, progress: Progress) -> None:
        self._plan = plan
        self._prepared = prepared
        self._root = root
        self._progress = progress
        self.errors: dict[str, StargateError] = {}

    async def train(self) -> None:
        """Runs every training condition that has not finished yet, with one set of actors."""
        names = [name for name in self._plan.configs if self._status(name)[0] != "finished"]
        if not names:
            return
        log_dir = self._root.resolve() / "logs"
        async with running_system(self._prepared, log_dir, Counters(), self._progress) as running:
            await self.train_in(running, names)

    async def train_in(self, running: RunningSystem, names: Sequence[str]) -> None:
        """Runs the named conditions, one after the other."""
        for number, name in enumerate(names, start=1):
            self._progress.say(f"\n== {name} ({number} of {len(names)})")
            try:
                await self._run(name, running)
            except _OWN_ERRORS as error:
                self.errors[name] = error
                self._progress.say(f"{name} failed, the others go on: {error}")
            self.write()

    async def _run(self, name: str, running: RunningSystem) -> None:
        prepared = replace(self._prepared, config=self._config(name))
        folder = self._root / name
        sources = self._sources(folder)
        config = prepared.config
        store = fill_run_dir(folder, config)
        with hold(folder):
            keep_inputs(store, prepared.inputs, accept=False, say=self._progress.say, new=True)
            shared = await share(sources, store, config.algorithm.label)
            store.write_json(_SHARED_FILE, shared)
            with tracked(config, folder, f"{self._root.name}-{name}", self._progress) as trackers:
                await Session(prepared, store, self._progress, trackers).play_in(running)

    def _config(self, name: str) -> RunConfig:
        """A condition's config, with the models at the commits that the actors hold."""
        ready = self._prepared
        return pinned(self._plan.configs[name], ready.base_model_dir, ready.roleplayer_dir)

    def _sources(self, folder: Path) -> list[RunStore]:
        """Where m_0's part may be copied from: finished runs first, then those that were stopped.

        A stopped run of this condition itself is put aside as NAME-stopped-1: its later
        checkpoints can't be gone on from, and it is not ours to delete.
        """
        if folder.exists():
            number = 1 + len(list(self._root.glob(f"{folder.name}-stopped-*")))
            folder.rename(folder.with_name(f"{folder.name}-stopped-{number}"))
        of_plan = [self._root / name for name in self._plan.configs]
        there = [place for place in of_plan if place.is_dir()]
        finished = [place for place in there if self._status(place.name)[0] == "finished"]
        stopped = [place for place in there if place not in finished]
        stopped += sorted(self._root.glob("*-stopped-*"))
        return [RunStore(place) for place in [*finished, *stopped]]

    def test_weaker(self) -> None:
        """Tests own_response's checkpoints with the weaker Roleplayer. Raises Interrupted."""
        weak = self._plan.weak
        if weak is None or self._status(WEAKER)[0] == "finished":
            return
        if self._status(REFERENCE)[0] != "finished":
            self._progress.say(f"{WEAKER}: not tested, since {REFERENCE} has not finished")
            return
        self._progress.say(f"\n== {WEAKER}: {' '.join(weak)}")
        try:
            run_evaluation(self._root / REFERENCE, weak, name=WEAKER)
        except StargateError as error:
            self.errors[WEAKER] = error
            self._progress.say(f"{WEAKER} failed: {error}")

    def write(self) -> dict[str, Any]:
        """Makes ablation.json and the report from what is on disk, and returns the former."""
        config = self._plan.config
        pairs = {pair.id: pair for pair in self._prepared.test_pairs.all}
        outcomes = []
        for condition in self._plan.conditions:
            folder = self._folder(condition.name)
            status, problem = self._status(condition.name)
            evaluation, observed = read_json(folder / EVALUATION_FILE) or None, None
            if evaluation is not None:
                count = self._prepared.chat.count
                observed = observe_last(RunStore(folder), evaluation, pairs, count)
            outcomes.append(
                Outcome(
                    condition,
                    folder=str(folder.relative_to(self._root)),
                    status=status,
                    problem=problem,
                    seconds=(read_json(folder / "summary.json") or {}).get("seconds"),
                    shared=read_json(folder / _SHARED_FILE) or {},
                    evaluation=evaluation,
                    observed=observed,
                )
            )
        about = {
            "name": self._root.name,
            "data": config.data.source,
            "split": config.data.test_split,
            "num_dialogues": config.evaluation.num_dialogues,
            "turns": config.evaluation.turns,
            "num_iterations": config.schedule.num_iterations,
            "seed": config.seed,
            "model": config.model,
        }
        values = ablation_json(outcomes, about)
        store = RunStore(self._root)
        store.write_json(ABLATION_FILE, values)
        store.write_text(REPORT_FILE, render_ablation(values))
        return values

    def _folder(self, name: str) -> Path:
        if name == WEAKER:
            return self._root / REFERENCE / "evaluations" / WEAKER
        return self._root / name

    def _status(self, name: str) -> tuple[Status, str | None]:
        """What became of a condition, and why if it has not finished."""
        folder = self._folder(name)
        if error := self.errors.get(name):
            return "failed", f"{type(error).__name__}: {error}"
        if not folder.is_dir():
            return "not_started", None
        if name == WEAKER:  # eval.json is the last that an evaluation of its own writes
            done = (folder / EVALUATION_FILE).is_file()
            return ("finished", None) if done else ("interrupted", None)
        said = (read_json(folder / "summary.json") or {}).get("status", "killed")
        if said == "finished":
            return "finished", None
        problem = said.removeprefix("stopped: ")
        if problem.partition(":")[0] in ("killed", "CancelledError", "KeyboardInterrupt"):
            return "interrupted", problem
        return "failed", problem
