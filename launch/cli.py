"""The command line: `stargate COMMAND ...`.

Each command is a module with `HELP`, `configure(parser)` and `run(args) -> exit code`. Only the
module of the command that was asked for is imported, and none of them imports ray, vllm or torch
before `run`, so help is instant. A StargateError becomes one line on stderr and its exit code;
anything else is a defect and shows its traceback.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from stargate import __version__
from stargate.errors import StargateError

# command -> (module, one line of help)
COMMANDS = {
    "run": ("stargate.launch.run", "run STaR-GATE iterations from a config"),
    "resume": ("stargate.launch.resume", "go on with a run that was stopped or killed"),
    "eval": (
        "stargate.launch.eval",
        "evaluate the checkpoints of a run, with confidence intervals",
    ),
    "report": ("stargate.launch.report", "show a run: HTML page, terminal summary, figures"),
    "ablate": ("stargate.launch.ablate", "run the paper's conditions on the same data and seeds"),
    "submit": (
        "stargate.launch.submit",
        "submit a run to a Ray cluster as a job; follow or stop it",
    ),
    "data": (
        "stargate.launch.data",
        "build, import, export, check and show tasks, personas and golds",
    ),
    "doctor": ("stargate.launch.doctor", "say what this machine has and what would not work on it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `stargate` script. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else None
    if name not in COMMANDS:
        parser = _overview()
        parser.parse_args(arguments)  # handles --help, --version and unknown commands; exits
        parser.print_help()
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"stargate {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    try:
        # Options may stand between overrides, but argparse can't mix them with subcommands.
        intermixed = not getattr(module, "HAS_SUBCOMMANDS", False)
        parse = parser.parse_intermixed_args if intermixed else parser.parse_args
        return int(module.run(parse(arguments[1:])))
    except StargateError as error:
        print(f"stargate {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"stargate {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`stargate ... | head`): nothing more can be said to
        # it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _overview() -> argparse.ArgumentParser:
    width = max(len(name) for name in COMMANDS)
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="stargate",
        description="Teach a language model to ask clarifying questions before it answers.",
        epilog=f"commands:\n{commands}\n\n`stargate COMMAND --help` tells more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stargate {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="see below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
