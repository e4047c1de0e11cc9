"""Shows what a run came to: did it get better, by how much, how sure, and what speaks against it.

Writes one HTML file that needs no network (light and dark, on a phone, on paper) with curves,
tables and a browser for all dialogues; or the same content as text, or as figures for a paper.

examples:
  stargate report runs/cpu_demo-20260101-120000
  stargate report runs/cpu_demo-20260101-120000 --text | less
  stargate report runs/cpu_demo-20260101-120000 --figures figures --out report.html
  stargate report s3://bucket/prefix/cpu_demo-20260101-120000
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stargate.launch.shared import add_run_argument, local_run

if TYPE_CHECKING:
    pass


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_run_argument(parser, writes=False)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where the HTML goes (default: RUN/report.html)"
    )
    parser.add_argument(
        "--text", action="store_true", help="print a summary instead (and no HTML, unless --out)"
    )
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="also write every figure as PNG and SVG"
    )


def run(args: argparse.Namespace) -> int:
    """Writes and prints what was asked for. Raises DataError for what is not a run directory."""
    from stargate.monitoring.progress import safe_text
    from stargate.report.data import load_report

    root = local_run(args, models=False)
    data = load_report(root)
    if args.text:
        from stargate.report.text import render_text

        print(render_text(data), end="")
    if args.out is not None or not args.text:
        from stargate.errors import DataError
        from stargate.records.files import write_text
        from stargate.report.findings import answer
        from stargate.report.page import render_page

        file, page = args.out or root / "report.html", render_page(data)
        if file.is_dir():
            raise DataError(
                f"{file}: is a folder; --out takes a file name, e.g. {file}/report.html"
            )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, page)
        except OSError as error:
            raise DataError(f"{file}: can't write the report: {error.strerror or error}") from error
        if not args.text:
            print(safe_text(answer(data, data.main).headline))
        print(safe_text(f"report: {file}"))
    if args.figures is not None:
        from stargate.report.figures import save_figures

        files = save_figures(data, args.figures)
        print(safe_text(f"figures: {len(files)} files in {args.figures}"))
    return 0
