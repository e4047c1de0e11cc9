"""Run STaR-GATE iterations from a config.

Before the first and after each iteration the test pairs are played and scored. What was written is
in the run directory that is named first: config.yaml, metrics.jsonl, summary.json, Parquet tables,
models/m1, m2, ... and logs/. Ctrl-C ends the run in order; everything finished is on disk.

examples:
  stargate run cpu_demo
  stargate run configs/paper.yaml model=my/model seed=1 rollout.num_dialogues=4
"""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("config", help="a YAML file, or the name of a packaged config (cpu_demo)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. seed=1 rollout.num_dialogues=4"
    )


def run(args: argparse.Namespace) -> int:
    """Runs. Raises Interrupted after Ctrl-C or SIGTERM, and StargateError."""
    from stargate.config.files import load_config

    config = load_config(args.config, args.overrides)
    from stargate.launch.session import run_session

    run_session(config)
    return 0
