"""Go on with a run that was stopped or killed, from what is in its directory.

Nothing that is on record is made again: dialogues, scores, selections, examples, responses,
verdicts, whole evaluations, and the models of finished iterations. What was in flight is repeated:
texts that were being generated or scored, and the optimizer steps after a training's last
checkpoint (trainer.checkpoint_seconds; without one, training starts over from the same examples).
The config is RUN/config.yaml as it was; seeds and pairs are therefore the same. summary.json counts
all sittings together.

Models, data and prompts must be what RUN/provenance.json has digests of. If they changed, resuming
ends with a line that names what did; --accept-changed goes on with what is there now, and notes it.

First the directory is put in order. Each table's file is compared with its checksum: a damaged one
is set aside as NAME.damaged-N, named, and its rows are made again. Only one process at a time may
work on a run. On a finished run this does nothing.

A run whose records landed on shared storage (records.uri) can be named by its address there, on a
machine that has nothing of it: it is fetched into runs/NAME or --to DIR first, its checksums are
compared, and what comes new lands at the same address.

examples:
  stargate resume runs/cpu_learn-20261123-120000
  stargate resume s3://bucket/prefix/cpu_learn-20261123-120000 --to /scratch/cpu_learn
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from stargate.launch.shared import add_accept_argument, add_run_argument, local_run

if TYPE_CHECKING:
    from stargate.monitoring.progress import Progress
    from stargate.records.repair import Damage
    from stargate.records.store import RunStore


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_run_argument(parser, writes=True)
    add_accept_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Goes on. Raises Interrupted after Ctrl-C or SIGTERM, and StargateError."""
    root = local_run(args, models=True)
    resume(root, take_over=args.take_over, accept_changed=args.accept_changed)
    return 0


def resume(root: Path, *, take_over: bool = False, accept_changed: bool = False) -> None:
    """Goes on with the run in `root`. Raises Interrupted and StargateError."""
    from stargate.launch.provenance import keep_inputs
    from stargate.launch.session import sit
    from stargate.launch.setup import prepare
    from stargate.monitoring.progress import make_progress
    from stargate.records.files import hold
    from stargate.records.history import read_history, read_totals
    from stargate.records.repair import discovery
    from stargate.records.store import RunStore, load_run_config
    from stargate.remote.landing import landing
    from stargate.resources.machine import environment

    config = load_run_config(root)
    _check_is_run(root)
    progress, store = make_progress(), RunStore(root)
    with hold(root):
        damaged = discovery(root)
        if not damaged and is_finished(store):
            progress.say(f"{root}: has finished; there is nothing to do")
            with landing(config, root, progress, take_over=take_over):
                return  # on shared storage something may be missing yet
        put_in_order(store, damaged, progress)
        history, sittings = read_history(store), read_totals(store)
        num_iterations = config.schedule.num_iterations
        progress.say(
            f"run directory: {root}\nsitting {sittings.count + 1}; finished: "
            f"{history.num_iterations} of {num_iterations} iterations, "
            f"evaluations {_names(history.evaluations)}"
        )
        prepared = prepare(config, progress.say)
        keep_inputs(store, prepared.inputs, accept_changed, progress.say)
        (root / "logs").mkdir(exist_ok=True)
        store.write_json(f"environment-{sittings.count + 1}.json", environment())
        sit(prepared, store, progress, history, sittings, take_over=take_over)


def is_finished(store: "RunStore") -> bool:
    """Whether the run has come to its end."""
    return (store.read_json("summary.json") or {}).get("status") == "finished"


def put_in_order(store: "RunStore", damaged: "list[Damage]", progress: "Progress") -> None:
    """Repairs the run directory, and says what was done."""
    from stargate.records.repair import repair

    files = {damage.file for damage in damaged}
    readable = store.root / "summary.json" not in files
    if files and readable and (summary := store.read_json("summary.json")) is not None:
        # Before anything is set aside: if we die after that, the run must not look finished.
        store.write_json("summary.json", {**summary, "status": "stopped: damaged files"})
    repairs = repair(store.root, damaged)
    for damage, place in repairs.set_aside:
        again = ", its rows are made again" if damage.file.suffix == ".parquet" else ""
        progress.say(
            f"damaged: {damage.file.relative_to(store.root)}: {damage.problem}; set aside as "
            f"{place.name}{again}"
        )
    said = (
        ("rows that were made from lost ones are made again, too", repairs.num_outdated_rows),
        ("temporary files of a killed process removed", repairs.num_temporaries),
        ("parts removed that were merged already", repairs.num_merged_parts),
        ("line of metrics.jsonl removed that was not written to its end", repairs.num_torn_lines),
    )
    for what, count in said:
        if count:
            progress.say(f"{count} {what}")


def _check_is_run(root: Path) -> None:
    """Raises DataError for other folders that have a config."""
    from stargate.errors import DataError

    if (root / "ablation.json").is_file():
        raise DataError(f"{root}: is an ablation; go on with: stargate ablate --resume {root}")
    if not (root / "models").is_dir():
        raise DataError(f"{root}: is no directory of a training run: it has no folder models")


def _names(versions: Iterable[int]) -> str:
    return ", ".join(f"m{version}" for version in sorted(versions)) or "none"
