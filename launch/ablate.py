"""Run the paper's ablations on the same data and seeds, and compare them in one report.

conditions:
  own_response       as in the paper: the own response is the regulariser; all are compared with it
  questions_only     loss on the questions only, no response
  gold_response      the gold stands where the own response stood
  weaker_roleplayer  own_response's checkpoints, tested with a weaker Roleplayer than in training:
                     without grounding in facts, or what --weak-roleplayer says
  contrastive        beyond the paper: dialogues chosen by the gold minus other personas' golds
  random             beyond the paper: dialogues chosen at random
The first four are run unless --conditions says otherwise.

All start from one m_0 with the same pairs and seeds. What m_0 does (its evaluation, the rollouts
and scores of iteration 0) is made once and copied, so what differs there comes from the condition.
Each condition has a complete run directory, RUNS_DIR/NAME-ablation-TIME/CONDITION, for `stargate
report` and `stargate eval`; beside them are ablation.json and report.html. A condition that fails
(diverged training) is recorded, the others go on, and the exit code is not 0. After Ctrl-C
`--resume DIR` goes on: finished conditions are kept, the others start anew with what m_0 had made.

examples:
  stargate ablate cpu_learn
  stargate ablate cpu_learn algorithm.selection=gold --conditions own_response,contrastive,random
  stargate ablate paper --weak-roleplayer roleplayer.model=mistralai/Mistral-7B-Instruct-v0.2
  stargate ablate --resume runs/cpu_learn-ablation-20261123-120000
"""

import argparse
from pathlib import Path

from stargate.launch.shared import add_accept_argument


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "config", nargs="?", help="a YAML file, or the name of a packaged config (cpu_learn)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for all conditions, e.g. seed=1"
    )
    parser.add_argument("--conditions", metavar="a,b,c", help="which ones (default: the paper's)")
    parser.add_argument(
        "--weak-roleplayer",
        nargs="+",
        default=[],
        metavar="key=value",
        help="the Roleplayer of weaker_roleplayer, e.g. roleplayer.model=SMALLER",
    )
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with an ablation")
    add_accept_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs. Returns 0 when all conditions have finished, 130 when it was interrupted."""
    from stargate.launch.ablation import new_plan, resumed_plan, run_ablation

    names = None
    if args.conditions is not None:
        names = [name.strip() for name in args.conditions.split(",")]
    if args.resume is None:
        plan = new_plan(args.config, args.overrides, names, args.weak_roleplayer)
    else:
        plan = resumed_plan(args.resume, args.config, names or (), args.weak_roleplayer)
    return run_ablation(plan, args.resume, accept_changed=args.accept_changed)
