"""Evaluate the checkpoints of a run on test pairs, with confidence intervals.

Plays the test pairs with every checkpoint (m0 is the base model), scores the golds under m0 with
all controls, asks a judge if one is configured (evaluation.judge), and writes eval.json: mean, 95 %
interval, cluster counts and changes from m0 for every measure.

Without overrides it completes the run's own evaluation in RUN: checkpoints and dialogues that are
there already are not played again, so evaluation.num_dialogues=8 adds to them, and a killed
evaluation goes on. What is measured differently (other data, split, Roleplayer, prompts, seed)
needs a --name and goes to RUN/evaluations/NAME, beside the run's own.

Models, data and prompts that the run has, too, must be what RUN/provenance.json has digests of; if
they changed, --accept-changed measures with what is there now.

RUN may be the address of a run on shared storage (records.uri): it is fetched, and what is measured
lands there, too.

examples:
  stargate eval runs/cpu_learn-20261123-120000 evaluation.num_dialogues=8
  stargate eval RUN --checkpoints m0,m3 --name authors data.source=my_import
  stargate eval RUN --name free-roleplayer 'roleplayer.grounding={type: persona}'
"""

import argparse

from stargate.launch.shared import add_accept_argument, add_run_argument, local_run


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_run_argument(parser, writes=True)
    add_accept_argument(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. evaluation.num_dialogues=8"
    )
    parser.add_argument(
        "--checkpoints", metavar="m0,m1", help="which ones (default: all that the run has)"
    )
    parser.add_argument("--split", help="short for data.test_split=SPLIT")
    parser.add_argument("--name", help="write to RUN/evaluations/NAME instead of RUN")


def run(args: argparse.Namespace) -> int:
    """Evaluates. Raises Interrupted after Ctrl-C or SIGTERM, and StargateError."""
    from stargate.launch.eval_session import run_evaluation

    split = [f"data.test_split={args.split}"] if args.split else []
    run_evaluation(
        local_run(args, models=True),
        [*args.overrides, *split],
        args.checkpoints,
        args.name,
        take_over=args.take_over,
        accept_changed=args.accept_changed,
    )
    return 0
