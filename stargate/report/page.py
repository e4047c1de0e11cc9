"""The report as one HTML file: it opens from disk, on a phone, on paper.

ReportData -> sections, figures (inline SVG), dialogues (JSON) -> templates/page.html.j2
"""

from markupsafe import Markup

from stargate.report.browser import browser_data, script_json
from stargate.report.figures import report_figures
from stargate.report.records import ReportData
from stargate.report.sections import report_sections
from stargate.report.templating import render_sections

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
