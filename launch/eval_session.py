"""`stargate eval` from start to end: which config, which folder, which checkpoints, then play.

RUN/config.yaml + overrides -> what is measured -> RUN, or RUN/evaluations/NAME
   -> actors without a trainer -> for each checkpoint: push, evaluate -> judge -> eval.json
"""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from stargate.config.files import dump_config, load_config
from stargate.config.run import RunConfig
from stargate.errors import ConfigError, DataError
from stargate.evaluation.evaluator import Evaluator, checkpoint_dirs, version_named
from stargate.evaluation.table import evaluation_lines
from stargate.launch.provenance import compare_inputs, keep_inputs
from stargate.launch.setup import Prepared, prepare
from stargate.launch.shared import interruptible
from stargate.launch.summary import cost_lines
from stargate.launch.system import running_system
from stargate.monitoring.progress import Progress, make_progress
from stargate.monitoring.tracking import leaves
from stargate.oracle.roleplayer_call import roleplayer_cost
from stargate.records.counters import Counters
from stargate.records.files import hold
from stargate.records.repair import discovery
from stargate.records.store import EVALUATION_DROPS, RunStore, load_run_config
from stargate.remote.landing import landing

# What may change within one evaluation: how much of it is made, and how it is made and judged.
_SAME_MEASURE = (
    "evaluation.num_dialogues",
    "evaluation.num_detailed_dialogues",
    "evaluation.num_other_golds",
    "evaluation.references",
    "evaluation.show_dialogues",
    "evaluation.judge",
    "evaluation.enabled",
    "device",
    "rollout",
    "scorer",
    "trainer",
    "algorithm",
    "schedule",
    "runs_dir",
    "records",
    "name",
    "questioner.engine",
    "roleplayer.engine",
    *(f"roleplayer.oracle.{part}" for part in ("limits", "retry", "cost", "api_key_env")),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def run_evaluation(
    run_dir: Path,
    overrides: Sequence[str],
    checkpoints: str | None = None,
    name: str | None = None,
    *,
    take_over: bool = False,
    accept_changed: bool = False,
) -> None:
    """Evaluates `checkpoints` ("m0,m1"; None: all) of a run, beside its own evaluation if `name`d.

    `take_over`: of a run on shared storage, from a driver that is dead. `accept_changed`: models,
    data and prompts may differ from what is recorded. Raises Interrupted after Ctrl-C or SIGTERM,
    and StargateError.
    """
    trained = load_run_config(run_dir)
    config = load_config(run_dir / "config.yaml", overrides)
    root = evaluation_root(run_dir, name, trained, config)
    progress = make_progress()
    prepared = prepare(config, progress.say, training=False)
    config = prepared.config
    if root != run_dir:
        compare_inputs(run_dir, prepared.inputs, accept_changed, progress.say)
    chosen = chosen_checkpoints(checkpoints, checkpoint_dirs(run_dir, prepared.base_model_dir))
    (root / "logs").mkdir(parents=True, exist_ok=True)
    store = RunStore(root)
    if root != run_dir:
        store.write_text("config.yaml", dump_config(config))
    evaluator = prepared.evaluator(config, trained)
    kept = f"interrupted: what was finished is in {root}; the same command goes on"
    with interruptible(progress, kept), hold(root):
        found = prepared.inputs
        keep_inputs(store, found, accept_changed, progress.say, new=root != run_dir)
        for damage in discovery(root):  # what is made from a damaged file would be wrong
            mend = f"stargate resume {run_dir} makes it again" if root == run_dir else "delete it"
            raise DataError(f"{damage.file}: {damage.problem}: {mend}")
        with landing(config, run_dir, progress, take_over=take_over, beside=True):
            asyncio.run(_evaluate(prepared, store, evaluator, chosen, progress))
            values = evaluator.write(store)
    for line in evaluation_lines(values):
        progress.say(line)
    progress.say(f"\n{root / 'eval.json'}")


async def _evaluate(
    prepared: Prepared,
    store: RunStore,
    evaluator: Evaluator,
    checkpoints: dict[int, Path],
    progress: Progress,
) -> None:
    counters = Counters()
    log_dir = store.root.resolve() / "logs"
    try:
        async with running_system(prepared, log_dir, counters, progress, training=False) as running:
            roles, bench = running.open(prepared.config, store, counters)
            for version, folder in checkpoints.items():
                if version:
                    await roles.push(str(folder), version)
                await evaluator.checkpoint(version, roles, bench)
            await evaluator.references(list(checkpoints), roles, bench)
            await evaluator.judge(list(checkpoints), roles, bench)
    finally:
        # Every call tries again what is missing, so the last call's drops are all that there are.
        drops = {"dropped": dict(counters.dropped), "examples": dict(counters.dropped_examples)}
        store.write_json(EVALUATION_DROPS, drops)
        for reason, count in counters.dropped.items():
            progress.say(f"dropped: {reason}: {count}, e.g. {counters.dropped_examples[reason][0]}")
        for line in cost_lines(roleplayer_cost(store.root)):
            progress.say(line)


def evaluation_root(run_dir: Path, name: str | None, trained: RunConfig, config: RunConfig) -> Path:
    """Where an evaluation belongs. Raises ConfigError if it needs a name and has none."""
    if name is not None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--name must be letters, digits, . _ or -, got {name!r}")
        return run_dir / "evaluations" / name
    old, new = (dict(leaves(one.model_dump(mode="json"))) for one in (trained, config))
    changed = [
        key
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
        and not any(key == same or key.startswith(f"{same}.") for same in _SAME_MEASURE)
    ]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changes what is measured: give this evaluation a --name, "
            "so that it stands beside the run's own"
        )
    return run_dir


def chosen_checkpoints(text: str | None, dirs: dict[int, Path]) -> dict[int, Path]:
    """The folders of "m0,m3", m_0 first since every change is measured from it.

    Raises ConfigError for one that the run does not have.
    """
    if text is None:
        return dirs
    versions = {0, *(version_named(part, dirs, "--checkpoints:") for part in text.split(","))}
    return {version: dirs[version] for version in sorted(versions)}
