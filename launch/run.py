"""Run STaR-GATE iterations from a config.

Before the first and after each iteration the test pairs are played and scored. What was written is
in the run directory that is named first: config.yaml, metrics.jsonl, summary.json, Parquet tables,
models/m1, m2, ... and logs/. Ctrl-C ends the run in order; everything finished is on disk.

--dry-run starts nothing: it prints where each process would be, what memory it takes, and roughly
how long the run would be; exit code 5 if something does not fit.

examples:
  stargate run cpu_demo
  stargate run paper --dry-run --assume-gpus 8x80
  stargate run configs/paper.yaml model=my/model seed=1 rollout.num_dialogues=4
"""

import argparse

from stargate.errors import ConfigError, MachineError
from stargate.launch.shared import add_gpus_argument


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("config", help="a YAML file, or the name of a packaged config (cpu_demo)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. seed=1 rollout.num_dialogues=4"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print placement, memory and time; start nothing"
    )
    add_gpus_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs. Raises Interrupted after Ctrl-C or SIGTERM, and StargateError."""
    from stargate.config.files import load_config

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        from stargate.launch.dry_run import show_plan

        return 0 if show_plan(config, args.assume_gpus) else MachineError.exit_code
    if args.assume_gpus is not None:
        raise ConfigError("--assume-gpus is for --dry-run: a run has the GPUs that are there")
    from stargate.launch.session import run_session

    run_session(config)
    return 0
