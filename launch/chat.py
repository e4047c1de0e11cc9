"""Be the user of a trained model in the terminal: it asks, you answer, then it answers.

The prompt is the run's own, carried as `stargate export` carries it; the sampling is the config's.
The model computes in this process, so it is there in seconds, on a CPU, too.

commands within: /answer ends with the model's answer, /save FILE keeps the dialogue as JSON,
/quit (or the end of the input) leaves. After an answer the next words begin a new dialogue.

examples:
  stargate chat runs/cpu_learn-20261123-120000
  stargate chat RUN --compare m0                 both models' next questions, side by side
  stargate chat RUN --persona pat --compare m0   type a request, watch the simulated user answer
"""

import argparse
from collections.abc import Iterator

from stargate.launch.shared import add_run_argument, local_run


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_run_argument(parser, writes=False)
    parser.add_argument(
        "--checkpoint", metavar="m1", help="who asks (default: the last; m0: the base model)"
    )
    parser.add_argument(
        "--compare", metavar="m0", help="show what this one would ask at the same place, too"
    )
    user = parser.add_mutually_exclusive_group()
    user.add_argument("--name", help="your name, which the prompt of the training has")
    user.add_argument(
        "--persona", metavar="ID", help="the simulated user as this persona of the run's data"
    )


def run(args: argparse.Namespace) -> int:
    """Talks until the user leaves. Raises StargateError."""
    import shutil
    import sys

    from stargate.launch.conversation import HELP, Conversation, Screen
    from stargate.launch.speakers import Speakers

    root = local_run(args, models=True)
    with Speakers(root, args.persona) as speakers:
        name = speakers.user_name or args.name
        chosen = [speakers.open(args.checkpoint, name)]
        if args.compare is not None:
            chosen.append(speakers.open(args.compare, name))

        def write(text: str) -> None:
            print(text, end="", flush=True)

        conversation = Conversation(
            speakers=chosen,
            screen=Screen(write, shutil.get_terminal_size().columns),
            about={"run": str(root), "checkpoint": chosen[0].name, "persona": args.persona},
            num_trained=chosen[0].num_trained,
        )
        conversation.screen.line(f"Say what you want; {HELP}")
        for words in _lines(sys.stdin.isatty()):
            if args.persona is None or words.lstrip().startswith("/"):
                if not conversation.hears(words):
                    break
            elif words.strip():
                speakers.watch(conversation, words.strip())
    return 0


def _lines(is_terminal: bool) -> Iterator[str]:
    """What the user types, line by line."""
    if is_terminal:
        import readline  # noqa: F401  (input() then has a history and edits its line)
    while True:
        try:
            yield input("you: " if is_terminal else "")
        except EOFError:
            return
