"""Write a trained model as a Hugging Face folder that works without stargate.

The folder has the weights, the tokenizer, a model card with the run's results, the sampling of its
questions, and a chat template that carries the run's prompts: whoever sends a plain user message
gets a question. A conversation that begins with a system message sees the base model's own template
alone. transformers, vLLM and whoever else reads Hugging Face folders load it.

examples:
  stargate export runs/cpu_learn-20261123-120000 my-asker
  stargate export RUN my-asker-m1 --checkpoint m1
  stargate export RUN my-asker --push me/my-asker
"""

import argparse
from pathlib import Path

from stargate.launch.shared import add_run_argument, local_run


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_run_argument(parser, writes=False)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; must be new")
    parser.add_argument(
        "--checkpoint", metavar="m1", help="which model (default: the last; m0: the base model)"
    )
    parser.add_argument(
        "--push", metavar="ID", help="also upload it to Hugging Face, as a private model ORG/NAME"
    )


def run(args: argparse.Namespace) -> int:
    """Exports. Raises StargateError."""
    from stargate.launch.checkpoint import open_checkpoint
    from stargate.launch.exporting import write_export

    if args.push is not None:
        from stargate.launch.hub import check_account

        check_account(args.push)
    checkpoint = open_checkpoint(local_run(args, models=True), args.checkpoint)
    write_export(checkpoint, args.out, args.push)
    print(f"export: {checkpoint.name} of {checkpoint.run_dir} is in {args.out}")
    if args.push is not None:
        from stargate.launch.hub import push

        print(f"pushed: {push(args.out, args.push)} (private, if it is new)")
    return 0
