"""Measure throughput: each benchmark is a ratio against something real in the same run.

  stargate bench rollout|score|train|push|iteration|scale|chaos [--json FILE]
  stargate bench compare NEW.json [--against OLD.json]

Every benchmark prints a card and, as its last line on stdout, one JSON object with `benchmark`,
`ratios`, `figures`, `hardware` and `versions`. `stargate bench NAME --help` says how each ratio's
numerator and denominator are measured. `compare` exits with 1 when a ratio fell by more than 10 %.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any, cast

from stargate.benchmarks.results import BASELINES, MAX_LOSS, Benchmark, card, read_result, record
from stargate.errors import ConfigError, DataError

HAS_SUBCOMMANDS = True

# benchmark (a module of benchmarks/) -> one line of help
BENCHMARKS = {
    "rollout": "dialogues of two engines against their ceiling and against lock-step loops",
    "score": "the scorer against vLLM's prompt_logprobs and a bare forward pass",
    "train": "the trainer against Hugging Face's padded Trainer and a bare torch loop",
    "push": "a weight push, against save + engine restart and against copying the bytes",
    "iteration": "one iteration streamed, against the stages one after the other",
    "scale": "the orchestration with simulated engines: 1 to 64 engine pairs, memory, Ray calls",
    "chaos": "random kills over all kinds of processes in one run: nothing may be lost",
}
_HAS_FALLEN = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand per benchmark, and `compare`."""
    commands = parser.add_subparsers(
        dest="benchmark", required=True, metavar="BENCHMARK", parser_class=_Subcommand
    )
    for name, text in BENCHMARKS.items():
        commands.add_parser(name, help=text, formatter_class=_Help)
    comparing = commands.add_parser("compare", help="flag ratios that fell by more than 10 %%")
    comparing.add_argument("new", type=Path, metavar="NEW.json", help="a benchmark's JSON line")
    comparing.add_argument(
        "--against", type=Path, metavar="OLD.json", help="default: this checkout's baseline"
    )


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the description as it is written, and says each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, [], argparse.SUPPRESS) or "default" in text:
            return text
        return f"{text} (default: %(default)s)".lstrip()


class _Subcommand(argparse.ArgumentParser):
    """Imports its benchmark when it is asked for, and no other one."""

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        name = self.prog.rpartition(" ")[2]
        if name in BENCHMARKS and self.description is None:
            module = _load(name)
            self.description, self.epilog = module.__doc__, _explain(module)
            module.configure(self)
            self.add_argument(
                "--json", type=Path, metavar="FILE", help="also write the result here"
            )
        return super().parse_known_args(*arguments, **named)


def _load(name: str) -> Benchmark:
    return cast(Benchmark, importlib.import_module(f"stargate.benchmarks.{name}"))


def run(args: argparse.Namespace) -> int:
    """Measures, or compares."""
    if args.benchmark == "compare":
        return _compare(args.new, args.against)
    from stargate.monitoring.progress import safe_text

    module = _load(args.benchmark)
    if args.json is not None and not args.json.parent.is_dir():
        # Said before minutes are spent on a result that nobody could keep.
        raise ConfigError(
            f"--json {args.json}: the folder {args.json.parent} does not exist; make it first"
        )
    measured = module.measure(
        args, lambda text: print(safe_text(text), file=sys.stderr, flush=True)
    )
    options = {k: v for k, v in vars(args).items() if k not in ("benchmark", "json")}
    result = record(args.benchmark, measured, options)
    print(card(result, module.RATIOS))
    line = json.dumps(result, ensure_ascii=False, allow_nan=False)
    if args.json is not None:
        args.json.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 0


def _explain(module: Benchmark) -> str:
    lines = ["ratios:"]
    for name, ratio in module.RATIOS.items():
        lines.append(f"  {name} (goal {ratio.aim})\n    {ratio.meaning}")
    return "\n".join(lines)


def _compare(new: Path, against: Path | None) -> int:
    now = read_result(new)
    name = now["benchmark"]
    if name not in BENCHMARKS:
        raise DataError(f"{new}: unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    before = read_result(against or BASELINES / f"{name}.json")
    if before["benchmark"] != name:
        raise DataError(f"{new} is of {name!r}, the other of {before['benchmark']!r}")
    if not before["ratios"]:
        print(f"{name}: has no ratios to compare")
    ratios, fallen = _load(name).RATIOS, False
    for key, old in before["ratios"].items():
        loss, shown = 1.0, "not measured"  # such a ratio has fallen as far as it can
        if key in ratios and key in now["ratios"]:
            value = now["ratios"][key]
            loss, shown = ratios[key].loss(old, value), f"{value:.3f}"
        fell = loss > MAX_LOSS
        print(f"{key:<20} {old:>10.3f} -> {shown:<12} {f'FELL by {loss:.0%}' if fell else 'ok'}")
        fallen |= fell
    return _HAS_FALLEN if fallen else 0
