"""Serve a trained model to any OpenAI-compatible client, with vLLM's own server.

The server's chat template carries the run's prompts, as `stargate export` has it: who sends a plain
user message gets a question, and after the training's number of questions an answer. Engine
settings, dtype and sampling are those of the run's Questioner. It listens on this machine only,
unless --host says otherwise; whoever reaches it may use it. Ctrl-C ends it.

examples:
  stargate serve runs/cpu_learn-20261123-120000
  stargate serve RUN --checkpoint m1 --port 9000
"""

import argparse

from stargate.launch.shared import add_run_argument, local_run


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_run_argument(parser, writes=False)
    parser.add_argument(
        "--checkpoint", metavar="m1", help="which model (default: the last; m0: the base model)"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM. Raises StargateError."""
    from stargate.launch.checkpoint import open_checkpoint
    from stargate.launch.serving import serve

    checkpoint = open_checkpoint(local_run(args, models=True), args.checkpoint)
    serve(checkpoint, args.host, args.port, lambda text: print(text, flush=True))
    return 0
