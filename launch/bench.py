"""Measure throughput: each benchmark is a ratio against something real in the same run.

  stargate bench rollout|score|train|push|iteration|scale|chaos [--json FILE]
  stargate bench compare NEW.json [--against OLD.json]

Every benchmark prints a card and, as its last line on stdout, one JSON object with `benchmark`,
`ratios`, `figures`, `hardware` and `versions`. `stargate bench NAME --help` says how each ratio's
numerator and denominator are measured. `compare` exits with 1 when a ratio fell by more than 10 %.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

HELP = "measure throughput, as ratios against something real in the same run"
HAS_SUBCOMMANDS = True

# benchmark -> module
BENCHMARKS = {
    "rollout": "stargate.benchmarks.rollout",
    "score": "stargate.benchmarks.score",
    "train": "stargate.benchmarks.train",
    "push": "stargate.benchmarks.push",
    "iteration": "stargate.benchmarks.iteration",
    "scale": "stargate.benchmarks.scale",
    "chaos": "stargate.benchmarks.chaos",
}
_HAS_FALLEN = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand per benchmark, and `compare`."""
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, place in BENCHMARKS.items():
        module = importlib.import_module(place)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=_explain(module),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    compare = commands.add_parser("compare", help="flag ratios that fell by more than 10 %%")
    compare.add_argument("new", type=Path, metavar="NEW.json", help="a benchmark's JSON line")
    compare.add_argument(
        "--against", type=Path, metavar="OLD.json", help="default: this checkout's baseline"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, or compares."""
    if args.benchmark == "compare":
        return _compare(args.new, args.against)
    from stargate.benchmarks.card import card, json_line, record

    module = importlib.import_module(BENCHMARKS[args.benchmark])
    if args.json is not None:
        _check_writable(args.json)
    from stargate.monitoring.progress import safe_text

    measured = module.measure(
        args, lambda text: print(safe_text(text), file=sys.stderr, flush=True)
    )
    options = {k: v for k, v in vars(args).items() if k not in ("benchmark", "json")}
    result = record(args.benchmark, measured, options)
    print(card(result, module.RATIOS))
    line = json_line(result)
    if args.json is not None:
        args.json.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 0


def _explain(module: ModuleType) -> str:
    lines = ["ratios:"]
    for name, ratio in module.RATIOS.items():
        lines.append(f"  {name} (goal {ratio.aim})\n    {ratio.meaning}")
    return "\n".join(lines).replace("%", "%%")


def _check_writable(file: Path) -> None:
    """Before minutes are spent on a result that nobody could keep."""
    from stargate.errors import ConfigError

    if not file.parent.is_dir():
        raise ConfigError(f"--json {file}: the folder {file.parent} does not exist; make it first")


def _compare(new: Path, against: Path | None) -> int:
    from stargate.benchmarks.compare import baseline_file, compare, read_result
    from stargate.errors import DataError

    now = read_result(new)
    name = now["benchmark"]
    if name not in BENCHMARKS:
        raise DataError(f"{new}: unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    before = read_result(against or baseline_file(name))
    if before["benchmark"] != name:
        raise DataError(f"{new} is of {name!r}, the other of {before['benchmark']!r}")
    if not before["ratios"]:
        print(f"{name}: has no ratios to compare")
    fallen = 0
    for found in compare(before, now, importlib.import_module(BENCHMARKS[name]).RATIOS):
        shown = "not measured" if found.now is None else f"{found.now:.3f}"
        flag = f"FELL by {found.loss:.0%}" if found.fell else "ok"
        print(f"{found.name:<20} {found.before:>10.3f} -> {shown:<12} {flag}")
        fallen += found.fell
    return _HAS_FALLEN if fallen else 0
