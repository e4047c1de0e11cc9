"""The report as one HTML file that needs no network: it opens from disk, on a phone, on paper.

    ReportData -> answer, tables, figures (inline SVG), dialogues (JSON)
        -> templates/report.html.j2 with the style and the scripts inside -> text of the file

Jinja2 escapes all text. Only what this project wrote itself goes in as it is: style, scripts, the
figures' SVG, and the dialogues' JSON, whose "<", ">" and "&" are written as \\u003c and so on. A
content security policy in the file lets no request out and runs only scripts with the hashes of
our own, so that even markup that slipped through could do nothing.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from stargate.config.files import dump_config
from stargate.report.breakdown import (
    breakdown,
    compare_selections,
    selection_gains,
)
from stargate.report.browser import browser_data, script_json
from stargate.report.findings import Answer, answer, main_evaluation
from stargate.report.judge_tables import judge_lines, win_rate_tables
from stargate.report.measures import format_interval, format_value
from stargate.report.plots import report_figures
from stargate.report.records import Evaluation, ReportData, Throughput
from stargate.report.svg import inline_svg
from stargate.report.tables import (
    COMPARED_MEASURES,
    breakdown_lines,
    compared,
    measures_table,
    other_evaluations,
    tiles,
)
from stargate.report.templating import new_environment, template_text

_STYLES = ("report.css", "browser.css")
# In the head: the theme must be known before anything is painted.
_HEAD_SCRIPTS = ("theme.js",)
_SCRIPTS = ("tables.js",)
# These share their names, in this order, in one function.
_BROWSER_SCRIPTS = ("records.js", "detail.js", "browser.js")

# Sections that show figures. Wall times stand in a table with bars of its own.
_FIGURE_SECTIONS = ("curves", "origin", "selection", "training")


def render_page(data: ReportData) -> str:
    """The whole file. Text of models and data is escaped, whatever it holds."""
    main = main_evaluation(data)
    found = answer(data, main)
    head, body = _script(_HEAD_SCRIPTS), _script(_SCRIPTS)
    browser = _script(_BROWSER_SCRIPTS)
    context = {
        "data": data,
        "main": main,
        "versions": compared(main) if main else (),
        "answer": found,
        "headline": _headline(found),
        "tiles": tiles(main) if main else (),
        "table": measures_table(main) if main else None,
        "judge": main.judge if main else None,
        "judge_lines": judge_lines(main.judge) if main and main.judge else (),
        "win_rates": win_rate_tables(main) if main else (),
        "by_task": _breakdown(data, main, "task"),
        "by_persona": _breakdown(data, main, "persona"),
        "others": [entry for entry in data.evaluations if entry.measures and entry is not main],
        "evaluation_lines": other_evaluations(e for e in data.evaluations if e.measures),
        "compared_measures": COMPARED_MEASURES,
        "selection_gains": selection_gains(data),
        "selections": compare_selections(data),
        "figures": _figures(data),
        "left_out": _left_out(data),
        "measures_table": measures_table,
        "longest_stage": max(data.stages.values(), default=0.0) or 1.0,
        "throughput": _throughput(data.throughput),
        "environment": list(_flat(data.environment)),
        "config_yaml": dump_config(data.config),
        "dialogues_json": Markup(script_json(browser_data(data))),
        "style": Markup("\n".join(template_text(name) for name in _STYLES)),
        "scripts": {"head": head, "body": body, "browser": browser},
        "policy": _policy([head, body, browser]),
    }
    return _environment().get_template("report.html.j2").render(context)


def _headline(found: Answer) -> tuple[str, str]:
    """The verdict in large letters, and the figures behind it as a sentence of their own."""
    verdict, colon, figures = found.headline.partition(": ")
    if not colon:
        return found.headline, ""
    return f"{verdict}.", figures[:1].upper() + figures[1:]


def _breakdown(data: ReportData, main: Evaluation | None, by: Any) -> Sequence[Any]:
    if main is None:
        return ()
    changes = len(compared(main)) > 1
    rows = breakdown(data, main, by)
    return breakdown_lines(rows, f"source={main.source}&{by}", changes=changes)


def _left_out(data: ReportData) -> str:
    number = data.num_dialogues_left_out
    return f"{number:,} training dialogues are left out here." if number else ""


def _throughput(found: Throughput) -> list[tuple[str, str]]:
    """What is known of it, in words."""

    def rate(amount: float | None, unit: str) -> str | None:
        return None if amount is None else f"{amount:,.0f} {unit}"

    entries = (
        ("rollout dialogues", rate(found.num_dialogues, "")),
        ("generated tokens", rate(found.generated_tokens, "")),
        ("generation", rate(found.generated_tokens_per_s, "tokens/s")),
        ("training", rate(found.train_tokens_per_s, "tokens/s")),
        ("training examples, last iteration", rate(found.train_examples, "")),
        ("optimizer steps, last iteration", rate(found.train_steps, "")),
        ("weight push", None if found.push_seconds is None else duration(found.push_seconds)),
        ("engines pushed to", rate(found.num_engines, "")),
        ("peak memory", None if found.peak_rss_gb is None else f"{found.peak_rss_gb:.1f} GiB"),
    )
    return [(name, text.strip()) for name, text in entries if text is not None]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as "machine cpu: ..." lines."""
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "\u2013"
        else:
            yield name, "\u2013" if value is None else str(value)


def _figures(data: ReportData) -> dict[str, list[dict[str, Any]]]:
    """Figures by section, drawn into the page in its own colours."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in _FIGURE_SECTIONS}
    for plot in report_figures(data):
        if plot.section in sections:
            svg = Markup(inline_svg(plot))
            shown = {"name": plot.name, "title": plot.title, "caption": plot.caption, "svg": svg}
            sections[plot.section].append(shown)
    return sections


@cache
def _environment() -> Environment:
    environment = new_environment()
    environment.filters["value"] = format_value
    environment.filters["duration"] = duration
    environment.globals["interval"] = format_interval
    return environment


def duration(seconds: float | None) -> str:
    """Two parts at most: "2 h 05 min", "3 min 20 s", "4.5 s"."""
    if seconds is None:
        return "\u2013"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@cache
def _script(names: Sequence[str]) -> Markup:
    """Files as one script, in a function of its own so that no name is global."""
    parts = "\n".join(template_text(name) for name in names)
    return Markup(f'(() => {{\n"use strict";\n{parts}}})();\n')


def _policy(scripts: Sequence[str]) -> str:
    """No request at all; scripts by hash. Styles may stand in attributes, as SVG has them."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
