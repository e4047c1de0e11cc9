"""The report as one HTML file: it opens from disk, on a phone, on paper, without a network.

ReportData -> sections, figures (inline SVG), dialogues (JSON) -> templates/page.html.j2

Jinja2 escapes all text. Only what this project wrote itself goes in as it is: style, scripts,
figures' SVG and JSON whose "<", ">" and "&" are escaped. A content security policy in the file lets
no request out and runs only scripts with the hashes of our own, so that even markup that slipped
through could do nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stargate.report.browser import browser_data, script_json
from stargate.report.figures import report_figures
from stargate.report.parts import Section
from stargate.report.records import ReportData
from stargate.report.sections import report_sections

# The theme must be known before anything is painted, so it comes first. The browser's scripts share
# their names, in this order.
_SCRIPTS = (("theme.js",), ("tables.js",))
_BROWSER = ("records.js", "detail.js", "browser.js")


def render_page(data: ReportData) -> str:
    """The whole file. Text of models and data is escaped, whatever it holds."""
    return render_sections(
        data.name,
        "report",
        f"stargate report on {data.name} \u00b7 status: {data.status} \u00b7 one file, no network",
        report_sections(data, report_figures(data)),
        styles=("report.css", "browser.css"),
        scripts=(*_SCRIPTS, _BROWSER) if data.dialogues else _SCRIPTS,
        dialogues_json=Markup(script_json(browser_data(data))),
    )


def render_sections(
    name: str,
    kind: str,
    footer: str,
    sections: Sequence[Section],
    *,
    styles: Sequence[str] = ("report.css",),
    scripts: Sequence[Sequence[str]] = (),
    **context: Any,
) -> str:
    """The whole file. `kind` is "report" or "ablation".

    `scripts` are files that share their names, one group for the head and then those at the end.
    """
    codes = [_script(group) for group in scripts]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=name,
            kind=kind,
            footer=footer,
            sections=sections,
            style=Markup("\n".join(_text(style) for style in styles)),
            scripts=codes,
            policy=_policy(codes),
            **context,
        )
    )


@cache
def _environment() -> Environment:
    """Templates in which every text is escaped and an unknown name is an error."""
    return Environment(
        loader=PackageLoader("stargate.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _text(name: str) -> str:
    folder = resources.files("stargate.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _script(names: Sequence[str]) -> Markup:
    """Files as one script, in a function of its own so that no name is global."""
    parts = "\n".join(_text(name) for name in names)
    return Markup(f'(() => {{\n"use strict";\n{parts}}})();\n')


def _policy(scripts: Sequence[str]) -> str:
    """No request at all; scripts by hash. Styles may stand in attributes, as SVG has them."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    allowed = f" script-src {hashes};" if scripts else ""
    return (
        f"default-src 'none';{allowed} style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
