"""The command line: `stargate COMMAND ...`.

Each command is a module with a docstring (the description in its help), `configure(parser)` and
`run(args) -> exit code`. Only the module of the command that was asked for is imported, and none of
them imports ray, vllm or torch before `run`, so help is instant. A StargateError becomes one line
on stderr and its exit code; anything else is a defect and shows its traceback.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from stargate import __version__
from stargate.errors import Interrupted, MachineError, StargateError
from stargate.resources.account import complete_account

# command -> (module, one line of help)
COMMANDS = {
    "run": ("stargate.launch.run", "run STaR-GATE iterations from a config"),
    "resume": ("stargate.launch.resume", "go on with a run that was stopped or killed"),
    "scale": ("stargate.launch.scale", "add engines to a run that goes on, or take some away"),
    "eval": (
        "stargate.launch.eval",
        "evaluate the checkpoints of a run, with confidence intervals",
    ),
    "report": ("stargate.launch.report", "show a run: HTML page, terminal summary, figures"),
    "chat": ("stargate.launch.chat", "be the user of a trained model, in the terminal"),
    "serve": ("stargate.launch.serve", "serve a trained model to OpenAI-compatible clients"),
    "export": ("stargate.launch.export", "write a trained model as a Hugging Face folder"),
    "ablate": ("stargate.launch.ablate", "run the paper's conditions on the same data and seeds"),
    "submit": (
        "stargate.launch.submit",
        "submit a run to a Ray cluster as a job; follow or stop it",
    ),
    "data": (
        "stargate.launch.data",
        "build, import, export, check and show tasks, personas and golds",
    ),
    "bench": ("stargate.benchmarks.command", "measure throughput, as ratios in the same run"),
    "doctor": ("stargate.launch.doctor", "say what this machine has and what would not work on it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `stargate` script. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding lacks is escaped, no error
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _show_defect
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else None
    if name not in COMMANDS:
        parser = _overview()
        parser.parse_args(arguments)  # handles --help, --version and unknown commands; exits
        parser.print_help()
        return 2
    try:
        _require_folder()
        if (note := complete_account()) is not None:
            print(f"stargate {name}: {note}", file=sys.stderr)
        module = importlib.import_module(COMMANDS[name][0])
        parser = argparse.ArgumentParser(
            prog=f"stargate {name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(parser)
        # Options may stand between overrides, but argparse can't mix them with subcommands.
        intermixed = not getattr(module, "HAS_SUBCOMMANDS", False)
        parse = parser.parse_intermixed_args if intermixed else parser.parse_args
        code = int(module.run(parse(arguments[1:])))
        sys.stdout.flush()  # here, where a full disk or a reader that went away is understood
        return code
    except StargateError as error:
        _say_error(name, str(error))
        return error.exit_code
    except Interrupted:
        return 130
    except KeyboardInterrupt:
        print(f"stargate {name}: interrupted", file=sys.stderr)
        return 130
    except MemoryError as error:
        _say_error(name, f"this machine has no memory left for it: {error or 'none was given'}")
        return MachineError.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`stargate ... | head`): nothing more can be said to
        # it.
        _drop_output()
        return 141
    except OSError as error:
        if (problem := _file_problem(error)) is None:
            raise
        _say_error(name, problem)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return MachineError.exit_code


def _file_problem(error: OSError) -> str | None:
    """One line about an error with a file, wherever it is read or written, also when it is our own
    output; None for other errors of the system, which are defects of ours.
    """
    from stargate.records.files import disk_problem

    file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    problem = disk_problem(error, Path(file or "output").absolute())
    return problem or (f"{file[:200]}: {error.strerror}" if file else None)


def _require_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        problem = "the current folder was deleted; change to one that exists"
        raise MachineError(problem) from None


def _drop_output() -> None:
    """What could not be written to stdout must not be tried again at the interpreter's exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_defect(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Python's own traceback, as text that can't control the terminal."""
    import traceback

    from stargate.monitoring.progress import safe_text

    print(safe_text("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr)


def _say_error(name: str, problem: str) -> None:
    """One line on stderr: a message may quote what a model or a data file has in it."""
    from stargate.monitoring.progress import safe_text

    print(safe_text(f"stargate {name}: {' '.join(problem.split())}"), file=sys.stderr)


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
