"""The HTML report as a file: what is in it, and above all what is not. Browsers: integration/."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from stargate.evaluation.statistics import Measure
from stargate.report.browser import browser_data, scope_id, script_json
from stargate.report.data import load_report
from stargate.report.evaluated import measures_table, other_sections, tiles, where_section
from stargate.report.judge import criteria_table, win_rate_tables
from stargate.report.page import render_page
from stargate.report.parts import Row, measured_cell
from stargate.report.records import Evaluation, ReportData
from stargate.report.sections import duration
from stargate.report.wording import Numbers
from tests.fakes.report_run import MARKUP, SCRIPT, build_halted_run

pytestmark = pytest.mark.integration

TEMPLATES = resources.files("stargate.report") / "templates"


class Page(HTMLParser):
    """Elements with their attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if tag == "script":
            self.scripts.append((values, ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.cdata_elem is None:
            self.words.append(data)

    def first(self, tag: str, **wanted: str) -> dict[str, str]:
        return next(
            attributes
            for name, attributes in self.elements
            if name == tag and wanted.items() <= attributes.items()
        )


@pytest.fixture(scope="module")
def main(data: ReportData) -> Evaluation:
    assert data.main is not None
    return data.main


def measures(evaluation: Evaluation) -> dict[str, Row]:
    """Rows of the table of measures by label; of two with the same label, the first."""
    return {row.label: row for row in reversed(measures_table(evaluation).rows)}


@pytest.fixture(scope="module")
def html(data: ReportData) -> str:
    return render_page(data)


def rows_of(tree: dict[str, Any], dialogue_id: str) -> list[Any]:
    """The row of a dialogue, found as templates/records.js finds it."""
    for row in tree["dialogues"]:
        scope = tree["scopes"][row[0]]["id"]
        task, persona = (tree["pairs"][row[1]][place] for place in (0, 1))
        pair = f"{tree['tasks'][task][0]}:{tree['personas'][persona][0]}"
        if f"{scope}/{pair}/{row[2]}" == dialogue_id:
            return list(row)
    raise AssertionError(f"{dialogue_id} is not there")


def test_json_can_not_end_its_script_and_reads_back() -> None:
    nasty = ["</script><script>x</script>", "<!--", "a & b", "\u2028\u2029", "\ud800", 'q"\\u003c']
    text = script_json(nasty)
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text) == nasty
    assert "\\u003c/script\\u003e" in text
    text.encode("utf-8")


def test_json_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError):
        script_json([float("nan")])


def test_no_markup_of_models_or_data_is_in_the_page(html: str) -> None:
    page = Page(html)
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "textarea", "b", "em")]
    assert SCRIPT not in html and MARKUP not in html
    assert "<script>document.title" not in html
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    # It is there as text: a dropped record's example names it.
    assert any(SCRIPT in text for text in page.words)
    assert any("Can you plan meal 0 <u>for me</u> (test)?" in text for text in page.words)


def test_every_script_has_its_hash_in_the_policy(html: str) -> None:
    page = Page(html)
    policy = page.first("meta", **{"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    code = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(code) == 3
    for text in code:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    # Before the first script, or it would not hold for it.
    assert html.index("Content-Security-Policy") < html.index("<script")


def test_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    links = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("href", "src", "action", "srcset", "data")
        if name in attributes
    ]
    assert links and all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"url\((?!#)|@import|@font-face", html)


def test_scripts_never_write_markup() -> None:
    scripts = [file for file in TEMPLATES.iterdir() if file.name.endswith(".js")]
    assert len(scripts) == 5
    for file in scripts:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_templates_never_switch_escaping_off() -> None:
    for file in TEMPLATES.iterdir():
        if file.name.endswith(".j2"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"\|\s*safe|autoescape", text), file.name


def test_browser_rows_hold_the_dialogue(data: ReportData) -> None:
    tree = browser_data(data)
    texts = tree["texts"]
    scope, pair, index, score, chosen, turns, responses, choice, shuffled = rows_of(
        tree, "eval-m2/test-task0:test-a/0"
    )
    assert tree["scopes"][scope]["version"] == 2
    # -100 + 2 x 2; shuffled is 1 + 2 less; m_0 without a dialogue -104.
    assert (index, score, shuffled, chosen, choice) == (0, -96.0, -99.0, 0, None)
    assert tree["pairs"][pair][-1] == -104.0
    assert [(texts[q], texts[a], facts, gain) for q, a, facts, gain in turns] == [
        ("Who lives with you, m2?", "I live with <b>two cats</b>.", [0], 5.0),
        ("What do you never eat?", MARKUP, [1], 3.0),
    ]
    assert [[version, texts[text]] for version, text in responses] == [
        [0, "Response of m0: rice <b>without</b> onions."],
        [2, "Response of m2: rice <b>without</b> onions."],
    ]
    gold, gold_facts = tree["pairs"][pair][2:4]
    assert (texts[gold], gold_facts) == ("Gold 0 for <em>Ana Ruiz</em>: no onions.", [0, 1])


def test_browser_marks_the_chosen_one(data: ReportData) -> None:
    tree = browser_data(data)
    marks = [rows_of(tree, f"t0/a-task0:a-a/{index}")[4] for index in range(3)]
    assert marks == [0, 1, 0]


def test_every_dialogue_is_found_by_its_id_and_each_text_stands_once(data: ReportData) -> None:
    tree = browser_data(data)
    assert len(tree["dialogues"]) == len(data.dialogues) > 60
    for dialogue in data.dialogues:
        own = f"{scope_id(dialogue)}/{dialogue.pair.id}/{dialogue.index}"
        assert own.endswith(dialogue.id)
        rows_of(tree, own)
    assert len(set(tree["texts"])) == len(tree["texts"])


def test_an_evaluation_beside_the_run_has_scopes_of_its_own(data: ReportData) -> None:
    scopes = {scope["id"]: scope for scope in browser_data(data)["scopes"]}
    assert list(scopes)[:5] == [
        "eval-m0",
        "eval-m1",
        "eval-m2",
        "evaluations/strict/eval-m0",
        "evaluations/strict/eval-m2",
    ]
    assert scopes["evaluations/strict/eval-m2"]["sourceLabel"] == "evaluation: strict"
    assert scopes["t1"]["kind"] == "training"


def test_measures_table(main: Evaluation) -> None:
    table = measures_table(main)
    heads = [column.title for column in table.columns]
    assert heads == ["m0", "m1", "m2", "m2 \u2212 m0"]
    rows = measures(main)
    headline = rows["matched minus shuffled"]
    assert headline.tone == "headline"
    assert [(cell.text, cell.interval) for cell in headline.cells] == [
        ("1.25", "0.75 to 1.75"),
        ("2.25", "1.75 to 2.75"),
        ("3.25", "2.75 to 3.75"),
        ("+2.00", "+1.50 to +2.50"),
    ]
    assert headline.cells[-1].tone == "up"
    assert headline.cells[0].hint == ("n = 8, 2 tasks \u00d7 2 personas, plain standard error 0.25")
    # The interval of the gold log-prob's change contains 0: no colour.
    gold = rows["gold log-prob, own dialogue"].cells[-1]
    assert (gold.text, gold.tone) == ("+4.0", "")
    # More repeated questions are worse.
    repeated = rows["repeated questions"].cells[-1]
    assert (repeated.text, repeated.tone) == ("+10.0 pp", "down")
    assert [cell.text for cell in rows["turn 2"].cells] == ["1.00", "2.00", "3.00", "+2.00"]


def test_win_rates_of_an_unfit_judge_are_struck(main: Evaluation, html: str) -> None:
    assert main.judge is not None
    cells = measures(main)["win rate, own responses"].cells
    assert [cell.void for cell in cells[:3]] == [False, True, True]
    assert [(row.label, row.cells[-1].text) for row in criteria_table(main.judge).rows] == [
        ("m\u2080 against itself: neither wins", "passed"),
        ("the gold beats m\u2080", "failed"),
        ("both orders agree", "failed"),
    ]
    (rates,) = win_rate_tables(main).values()
    lines = {row.label: row.cells for row in rates.rows}
    assert [column.title for column in rates.columns] == ["m1", "m2"]
    assert [(c.text, c.void) for c in lines["at equal length"]] == [("52.0 %", True)] * 2
    assert [c.text for c in lines["wins, ties, losses"]] == ["1, 2, 1"] * 2
    assert [c.text for c in lines["unreadable verdicts"]] == ["1", "1"]
    assert "UNFIT: do not believe its win rates." in html


def test_tiles_say_from_where_to_where(main: Evaluation) -> None:
    found = {tile.label: tile for tile in tiles(main)}
    first = found["Matched minus shuffled"]
    assert (first.value, first.unit, first.interval) == ("+2.00", "nats", "+1.50 to +2.50")
    assert first.note == "m0: 1.25 \u2192 m2: 3.25"
    share = found["Gold's facts elicited"]
    assert (share.value, share.unit) == ("+75", "pp")


def test_breakdown_links_to_the_dialogues(data: ReportData, main: Evaluation) -> None:
    rows = where_section(data, main).parts[1].value.rows
    assert {row.link for row in rows} == {f"source=test&persona=test-{name}" for name in "ab"}
    ben = next(row for row in rows if row.link.endswith("persona=test-b"))
    # Two tasks; 1 + 0.5 at m0, two nats more at m2; no fact at m0, two at m2.
    assert [cell.text for cell in ben.cells] == [
        *("2", "1.5", "3.5", "+2.0"),
        *("0.00", "2.00", "+2.00"),
    ]


def test_other_evaluations_stand_beside_the_own(data: ReportData, main: Evaluation) -> None:
    _, [section] = other_sections(data, main)
    rows = section.parts[0].value.rows
    assert [row.label for row in rows] == ["test", "strict"]
    assert [cell.text for cell in rows[1].cells[:3]] == ["1.25", "3.25", "+2.00"]


def test_a_run_that_died_has_a_report(tmp_path: Path) -> None:
    found = load_report(build_halted_run(tmp_path))
    page = Page(render_page(found))
    assert page.first("section", id="browser")
    assert not [1 for _, attributes in page.elements if attributes.get("id") == "measures"]
    assert any("Nothing was measured" in text for text in page.words)


def test_the_page_is_the_same_each_time(data: ReportData, html: str) -> None:
    assert render_page(data) == html


def test_the_config_is_in_the_page(html: str) -> None:
    assert any("num_iterations: 2" in text for text in Page(html).words)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\u2013"),
        (4.46, "4.5 s"),
        (59.97, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (7500.0, "2 h 05 min"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("measure", "more_is_better", "tone"),
    [
        (Measure(2.0, None, None, None, 1, 1, 1), True, ""),
        (Measure(2.0, 1.0, 3.0, 0.5, 8, 2, 2), False, "down"),
    ],
)
def test_a_measure_without_an_interval_is_never_coloured(
    measure: Measure, more_is_better: bool, tone: str
) -> None:
    numbers = Numbers.usual("nats")
    assert measured_cell(measure, numbers, signed=True, more_is_better=more_is_better).tone == tone
