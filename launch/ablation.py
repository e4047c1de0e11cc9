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

from stargate.config.files import dump_config, load_config
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
from stargate.launch.eval_session import EvaluationRequest, run_evaluation
from stargate.launch.session import Session, fill_run_dir, timed_name
from stargate.launch.setup import Prepared, prepare
from stargate.launch.system import RunningSystem, running_system
from stargate.monitoring.progress import Progress, make_progress
from stargate.monitoring.tracking import open_trackers
from stargate.records.counters import Counters
from stargate.records.files import hold, read_json
from stargate.records.store import RunStore
from stargate.report.ablation import ablation_lines, render_ablation

REPORT_FILE = "report.html"
_SHARED_FILE = "shared.json"
# Errors of one condition, after which actors can play the next. Others (a dead engine, a full disk)
# would meet every condition, so they end the ablation.
_OWN_ERRORS = (DivergenceError, DataError)


@dataclass(frozen=True, slots=True)
class AblationRequest:
    """What the command line asked for. `config` is None when an ablation is resumed."""

    config: str | None
    overrides: tuple[str, ...] = ()
    conditions: tuple[str, ...] | None = None  # None: the paper's
    weak_roleplayer: tuple[str, ...] = ()
    resume: Path | None = None


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


def run_ablation(request: AblationRequest) -> int:
    """Returns 0, 130 after Ctrl-C or SIGTERM, else the exit code of the first failure.

    Raises StargateError for what ends all conditions.
    """
    resume = request.resume
    plan = _new_plan(request) if resume is None else _resumed_plan(resume, request)
    progress = make_progress()
    prepared = prepare(plan.config, progress.say)
    if plan.weak is not None:  # what is wrong with it is said now, not in some hours
        weak = condition_config(plan.config, WEAKER, plan.weak)
        prepare(weak, lambda line: None, training=False)
    root = resume or _create_dir(plan.config)
    progress.say(f"ablation directory: {root}")
    ablation = Ablation(plan, prepared, root, progress)
    try:
        ablation.write()
        asyncio.run(ablation.train())
        interrupted = ablation.test_weaker() == 130
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


def _new_plan(request: AblationRequest) -> Plan:
    if request.config is None:
        raise ConfigError("name a config, e.g. stargate ablate cpu_learn")
    config = load_config(request.config, request.overrides)
    names = PAPER_CONDITIONS if request.conditions is None else request.conditions
    return plan_ablation(config, names, request.weak_roleplayer)


def _resumed_plan(root: Path, request: AblationRequest) -> Plan:
    """The conditions that the ablation has, and those that are added to it."""
    if request.config is not None:
        raise ConfigError(f"--resume {root} goes on with the config in it: name no other")
    if not (root / ABLATION_FILE).is_file():
        raise DataError(f"{root}: not an ablation: it has no {ABLATION_FILE}")
    before = (read_json(root / ABLATION_FILE) or {}).get("conditions")
    if not isinstance(before, dict) or not all(isinstance(c, dict) for c in before.values()):
        raise DataError(f"{root / ABLATION_FILE}: not what an ablation writes: no conditions")
    weak = tuple(map(str, before.get(WEAKER, {}).get("overrides") or ()))
    if weak and request.weak_roleplayer and weak != request.weak_roleplayer:
        raise ConfigError(f"--weak-roleplayer: {root} has another one already: {' '.join(weak)}")
    return plan_ablation(
        load_config(root / "config.yaml"),
        [*before, *(request.conditions or ())],
        weak or request.weak_roleplayer,
    )


def _create_dir(config: RunConfig) -> Path:
    name = timed_name(config.model_copy(update={"name": f"{config.name}-ablation"}))
    root = config.runs_dir / name
    try:
        (root / "logs").mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"runs_dir: can't create {root}: {error.strerror}") from error
    RunStore(root).write_text("config.yaml", dump_config(config))
    return root


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
        config = self._plan.configs[name]
        folder = self._root / name
        sources = self._sources(folder)
        store = fill_run_dir(folder, config)
        with hold(folder):
            shared = await share(sources, store, config.algorithm.selection)
            store.write_json(_SHARED_FILE, shared)
            with open_trackers(
                config.tracking,
                folder,
                f"{self._root.name}-{name}",
                config.model_dump(mode="json"),
                self._progress.say,
            ) as trackers:
                prepared = replace(self._prepared, config=config)
                await Session(prepared, store, self._progress, trackers).play_in(running)

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

    def test_weaker(self) -> int:
        """Tests own_response's checkpoints with the weaker Roleplayer. Returns 0 or 130."""
        weak = self._plan.weak
        if weak is None or self._status(WEAKER)[0] == "finished":
            return 0
        if self._status(REFERENCE)[0] != "finished":
            self._progress.say(f"{WEAKER}: not tested, since {REFERENCE} has not finished")
            return 0
        self._progress.say(f"\n== {WEAKER}: {' '.join(weak)}")
        try:
            return run_evaluation(EvaluationRequest(self._root / REFERENCE, weak, None, WEAKER))
        except StargateError as error:
            self.errors[WEAKER] = error
            self._progress.say(f"{WEAKER} failed: {error}")
            return 0

    def write(self) -> dict[str, Any]:
        """Makes ablation.json and the report from what is on disk, and returns the former."""
        config = self._plan.config
        outcomes = [self._outcome(condition) for condition in self._plan.conditions]
        about = {
            "name": self._root.name,
            "data": config.data.source,
            "split": config.data.test_split,
            "num_dialogues": config.evaluation.num_dialogues,
            "num_turns": config.evaluation.num_turns,
            "num_iterations": config.schedule.num_iterations,
            "seed": config.seed,
            "model": config.model,
        }
        values = ablation_json(outcomes, about)
        store = RunStore(self._root)
        store.write_json(ABLATION_FILE, values)
        store.write_text(REPORT_FILE, render_ablation(values))
        return values

    def _outcome(self, condition: Condition) -> Outcome:
        name = condition.name
        folder = self._folder(name)
        status, problem = self._status(name)
        outcome = Outcome(
            condition=condition,
            overrides=condition.overrides,
            folder=str(folder.relative_to(self._root)),
            status=status,
            problem=problem,
            seconds=(read_json(folder / "summary.json") or {}).get("seconds"),
            shared=read_json(folder / _SHARED_FILE) or {},
        )
        if not (evaluation := read_json(folder / EVALUATION_FILE)):
            return outcome
        pairs = {pair.id: pair for pair in self._prepared.test_pairs.all}
        count = self._prepared.chat.count
        observed = observe_last(RunStore(folder), evaluation, pairs, count)
        return replace(outcome, evaluation=evaluation, observed=observed)

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
