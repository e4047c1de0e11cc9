"""Build, import, export, check and show the data of a run: tasks, personas and golds.

A dataset is a folder with tasks, personas and golds as .jsonl or .parquet; `starter` and `asking`
name packaged ones. Each subcommand tells more with --help.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stargate.errors import DataError, ExitCode
from stargate.launch import data_build
from stargate.launch.shared import positive

if TYPE_CHECKING:
    from stargate.data.findings import Case
    from stargate.data.showing import Screen

HAS_SUBCOMMANDS = True
# Cases per kind that are shown on the screen; the reports list more.
_SHOWN = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands."""
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    for name, (text, description, configure_one, _) in SUBCOMMANDS.items():
        sub = commands.add_parser(name, help=text, description=description, formatter_class=raw)
        configure_one(sub)


def run(args: argparse.Namespace) -> int:
    """Runs one subcommand and returns its exit code."""
    *_, run_one = SUBCOMMANDS[args.subcommand]
    return run_one(args)


# --- import

_FORMATS = ("star-gate", "hf", "jsonl", "parquet", "csv", "in3")
_IMPORT_HELP = "read data of another shape into a dataset folder"
_IMPORT = """Import data of another shape into a new dataset folder.

formats (recognised by what SOURCE holds, unless --format says):
  star-gate  the authors' layout: prompts/{A,B,test}.json, personas/{..}.json with {..}_NAMES.json,
             gold-responses/{..}.json; parts may be missing
  hf         a folder written by Hugging Face `datasets` (save_to_disk), or a data set as the hub
             has it (data/train-00000-of-00001.parquet): tasks, personas and golds, or tasks only
  jsonl      a folder with tasks.jsonl, personas.jsonl, golds.jsonl; or one file of tasks
  parquet    the same as .parquet
  csv        one file of tasks with a line of column names
  in3        one file of IN3 (arXiv 2402.09205): persons with options of the missing details ask the
             vague tasks (--persons of each, drawn by --seed); the clear ones need no question.
             Without --splits the rows go to A, B, A, B, test, again and again

What is not as it should be is counted and listed, here and in OUT/import-report.json, and never
stops the import. A persona without facts gets the sentences of its profile as facts, each with its
origin. They are kept as they are, also in the third person: the Roleplayer words them.

examples:
  stargate data import --format star-gate path/to/assistant-gate/data my-data
  stargate data import prompts.csv my-tasks --column prompt --splits A=250,B=250,test=50
  stargate data import --format in3 in3/train.jsonl my-in3 --persons 6
"""


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="what to read")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new dataset folder")
    parser.add_argument("--format", choices=_FORMATS, help="the shape of SOURCE")
    parser.add_argument("--column", help="the column with the task's text, for tasks only")
    parser.add_argument(
        "--splits",
        metavar="A=250,B=250,test=50",
        help="how many rows go to which split, in order, for tasks only and in3; a name alone "
        "takes the rest",
    )
    parser.add_argument(
        "--persons", type=positive, default=4, metavar="N", help="in3: who ask each vague task (4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="in3: what persons are drawn by (0)")
    parser.add_argument(
        "--keep-split",
        default="test",
        metavar="SPLIT",
        help="which split keeps a text that stands in several (default: test)",
    )
    _add_force(parser)


def _run_import(args: argparse.Namespace) -> int:
    from stargate.data.importers import TaskSource, import_dataset, parse_splits
    from stargate.data.in3 import In3Source

    splits = parse_splits(args.splits) if args.splits else ()
    report = import_dataset(
        args.source,
        args.out,
        args.format,
        tasks=TaskSource(args.column, splits, in3=In3Source(args.persons, args.seed)),
        keep_split=args.keep_split,
        force=args.force,
    )
    from stargate.data.findings import ACTIONS, IMPORT_KINDS
    from stargate.data.showing import Screen

    screen = Screen()
    screen.line(f"imported {args.source} ({report.source_format}) into {args.out}")
    whats = ("tasks", "personas", "facts", "golds")
    rows = [[split, *(str(n[what]) for what in whats)] for split, n in report.written.items()]
    screen.table(("split", *whats), rows, numbers=frozenset(range(1, 5)))
    screen.line()
    counted = ", ".join(f"{report.num(action)} {action}" for action in ACTIONS)
    screen.line(f"found: {counted}")
    for kind in report.kinds():
        action, meaning = IMPORT_KINDS[kind]
        screen.line(f"{report.counts[kind]:6} {action:8}  {kind}: {meaning}")
        _show_cases(report.listed[kind], report.counts[kind], screen)
    screen.line(f"all of it: {args.out / 'import-report.json'}")
    return 0


# --- export

_EXPORT_HELP = "write a dataset as jsonl, parquet, hf or sft"
_EXPORT = """Write a dataset in another shape, into a new folder.

formats:
  jsonl, parquet  a dataset folder again
  hf              a `datasets` folder: load_from_disk(OUT)["golds"]
  sft             OUT/SPLIT.jsonl with {"messages": [user, assistant]} for each pair with a gold:
                  what TRL's SFTTrainer takes as it is (set assistant_only_loss=True there to learn
                  the golds only). The user's turn is the opening of the prompt set.

examples:
  stargate data export starter my-copy --format parquet
  stargate data export my-data my-sft --format sft --prompts paper --context persona
"""


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder, starter or asking")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument(
        "--format", choices=("jsonl", "parquet", "hf", "sft"), required=True, help="see above"
    )
    parser.add_argument(
        "--prompts", default="paper", help="sft: a packaged prompt set or a file (default: paper)"
    )
    parser.add_argument(
        "--context",
        choices=("opening", "persona"),
        default="opening",
        help="sft: what the user's turn holds: the opening, or also the profile",
    )
    _add_force(parser)


def _run_export(args: argparse.Namespace) -> int:
    from stargate.data.dataset import PACKAGED, open_dataset
    from stargate.data.exporters import export_dataset, export_sft
    from stargate.data.showing import Screen
    from stargate.text.prompts import load_prompts

    screen = Screen()
    dataset = open_dataset(args.dataset)
    source = None if args.dataset in PACKAGED else Path(args.dataset)
    for reason, count in dataset.drop_counts.items():
        screen.line(f"not exported: {count} x {reason} (golds that no run uses)", "warning")
    if args.format == "sft":
        prompts = load_prompts(args.prompts)
        counts = export_sft(dataset, args.out, prompts, args.context, source, args.force)
        for split, count in counts.items():
            if count:
                screen.line(f"{args.out / (split + '.jsonl')}: {count} conversations")
            else:
                screen.line(f"split {split}: no pair has a gold, so it has no file", "warning")
        return 0
    counts = export_dataset(dataset, args.out, args.format, source, args.force)
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    screen.line(f"{args.out} ({args.format}): {listed}")
    return 0


# --- check

_CHECK = f"""Check whether a dataset is fit to train and test on.

Looks for repeated and nearly repeated tasks, personas and golds, also between splits; golds that
ignore their persona or tell facts that the task does not need; golds addressed to nobody or to
another; tasks that need no clarifying question; cut-off answers. How each is decided is told in
stargate/data/quality_golds.py, similarity.py and plain_tasks.py.

exit codes:
  0  checked: whatever was found
  {ExitCode.FAULTY_DATA}  with --strict: there are errors; always: a limit of --max is exceeded
  3  the data can't be read

examples:
  stargate data check starter
  stargate data check my-data --strict --json report.json
  stargate data check my-data --max ignores_persona=0.05 --max near_duplicate_task=0
"""


def _configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder, starter or asking")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")
    parser.add_argument(
        "--strict", action="store_true", help=f"exit {ExitCode.FAULTY_DATA} when there are errors"
    )
    parser.add_argument(
        "--max",
        action="append",
        default=[],
        metavar="KIND=LIMIT",
        help="more of that kind is an error; a whole number is a count, a decimal (0.05) a share",
    )
    parser.add_argument(
        "--show", type=int, default=_SHOWN, metavar="N", help=f"cases per kind (default: {_SHOWN})"
    )


def _run_check(args: argparse.Namespace) -> int:
    from stargate.data.dataset import open_dataset
    from stargate.data.findings import CHECK_KINDS, parse_limits
    from stargate.data.quality import check_dataset
    from stargate.data.showing import Screen, show_summary
    from stargate.data.writing import write_json

    limits = parse_limits(args.max)
    if args.json is not None and args.json.is_dir():
        raise DataError(f"{args.json}: is a folder; --json takes a file name")
    dataset = open_dataset(args.dataset)
    report = check_dataset(dataset, limits=limits)
    screen = Screen()
    show_summary(dataset, screen)
    screen.line()
    points = ("number", "min", "p5", "median", "p95", "max")
    rows = [[kind, *(f"{n[p]:.0f}" for p in points)] for kind, n in report.lengths.items()]
    screen.table(("words", *points), rows, numbers=frozenset(range(1, 7)))
    screen.line()
    if report.findings:
        rows = [
            [f.level, f.kind, str(f.count), f"{f.share:.1%}", CHECK_KINDS[f.kind][2]]
            for f in report.findings
        ]
        titles = ("level", "found", "count", "share", "meaning")
        screen.table(titles, rows, numbers=frozenset({2, 3}))
    for finding in report.findings:
        screen.line(f"\n{finding.level}: {finding.kind}", finding.level)
        _show_cases(finding.cases, finding.count, screen, args.show)
    screen.line()
    for f in report.findings:
        if f.exceeded:
            found = f"{f.count} ({f.share:.1%}), at most {f.limit}"
            screen.line(f"limit exceeded: {f.kind}: {found}", "error")
    num_warnings = sum(finding.level == "warning" for finding in report.findings)
    screen.line(f"kinds of errors: {report.num_errors}, of warnings: {num_warnings}")
    if args.json:
        try:
            write_json(args.json, report.to_json())
        except OSError as error:
            raise DataError(f"{args.json}: can't be written: {error.strerror}") from error
    bad = report.limits_exceeded or (args.strict and report.num_errors > 0)
    return ExitCode.FAULTY_DATA if bad else 0


# --- show

_SHOW = """Show pairs of a dataset: the task, the persona with its facts, and the gold.

Facts that the gold uses are marked with *. Pairs with a gold come first.

examples:
  stargate data show starter
  stargate data show my-data --split test --task test-prompt-3 --n 5
  stargate data show my-data --persona A-persona-7 --seed 1
"""


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a dataset folder, starter or asking")
    parser.add_argument("--split", help="only pairs of this split")
    parser.add_argument("--task", metavar="ID", help="only pairs of this task")
    parser.add_argument("--persona", metavar="ID", help="only pairs of this persona")
    parser.add_argument("--n", type=int, default=3, metavar="N", help="how many (default: 3)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which ones (default: 0)")


def _run_show(args: argparse.Namespace) -> int:
    from stargate.data.dataset import open_dataset
    from stargate.data.showing import Screen, choose_pairs, show_pair, show_summary

    if args.n < 0:
        raise DataError(f"--n must be >= 0, got {args.n}")
    dataset = open_dataset(args.dataset)
    pairs = []
    if args.n and dataset.tasks and dataset.personas:
        pairs = choose_pairs(dataset, args.split, args.task, args.persona, args.n, args.seed)
    screen = Screen()
    show_summary(dataset, screen)
    for pair in pairs:
        show_pair(pair, screen)
    if args.n and not (dataset.tasks and dataset.personas):
        missing = "personas" if dataset.tasks else "tasks"
        screen.line(f"no pairs to show: it has no {missing} yet")
    return 0


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="replace OUT if it exists and is a dataset folder"
    )


def _show_cases(cases: "list[Case]", count: int, screen: "Screen", shown: int = _SHOWN) -> None:
    """The first few cases, and how many more there are."""
    for where, detail in cases[:shown]:
        screen.line(f"          {where}" + (f": {detail}" if detail else ""))
    if 0 < shown < len(cases):
        screen.line(f"          and {count - shown} more")


# `stargate data NAME` -> help, description, what adds its arguments, what runs it.
SUBCOMMANDS = {
    "import": (_IMPORT_HELP, _IMPORT, _configure_import, _run_import),
    "export": (_EXPORT_HELP, _EXPORT, _configure_export, _run_export),
    "check": ("say what is wrong with a dataset", _CHECK, _configure_check, _run_check),
    "show": ("print pairs for reading", _SHOW, _configure_show, _run_show),
    "build": (data_build.HELP, data_build.DESCRIPTION, data_build.configure, data_build.run),
}
