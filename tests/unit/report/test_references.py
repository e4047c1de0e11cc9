"""Reference rows in the report, and skill as its headline."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stargate.errors import DataError
from stargate.report.data import load_report
from stargate.report.evaluated import measures_table, opening_section
from stargate.report.findings import Answer, answer
from stargate.report.page import render_page
from stargate.report.records import Evaluation, ReportData
from stargate.report.references import reference_section
from stargate.report.sections import report_sections
from stargate.report.text import render_text
from tests.fakes.report_values import CONSTANT_LIST, SCRIPT, measured

TITLE = "What nobody learned"
FALLBACK = "Yes, m2 beats m0: matched minus shuffled rose by 2.00 nats"


def edited(copy: Path, change: Callable[[Any], object]) -> tuple[ReportData, Evaluation, Answer]:
    """The run with its eval.json changed in place by `change`, and its answer."""
    tree = json.loads((copy / "eval.json").read_text())
    change(tree)
    (copy / "eval.json").write_text(json.dumps(tree))
    data = load_report(copy)
    assert data.main is not None
    return data, data.main, answer(data, data.main)


def skilled(mean: float, half: float) -> Callable[[Any], object]:
    """Gives m_0 a skill of 0.05 and m_2 the named one."""

    def change(tree: Any) -> None:
        tree["m0"]["skill"], tree["m2"]["skill"] = measured(0.05, 0.125), measured(mean, half)

    return change


def test_rows_stand_above_the_checkpoints_from_the_least_to_the_most(data: ReportData) -> None:
    assert data.main is not None
    table = reference_section(data.main).parts[0].value
    assert [column.title for column in table.columns] == [
        "facts per dialogue",
        "gold's facts",
        "contrast, nats",
    ]
    rows = [row for row in table.rows if row.cells]
    assert [(row.label, row.cells[-1].text, row.cells[-1].interval) for row in rows] == [
        ("no dialogue", "0.50", "0.00 to 1.00"),
        ("own frequent questions", "1.25", "0.75 to 1.75"),
        ("random facts told", "5.50", "5.00 to 6.00"),
        ("best list for everybody", "2.50", "2.00 to 3.00"),
        ("best list per task", "9.50", "9.00 to 10.00"),
        ("gold facts told", "20.50", "20.00 to 21.00"),
        ("m0", "1.50", "1.25 to 1.75"),
        ("m1", "2.50", "2.25 to 2.75"),
        ("m2", "3.50", "3.25 to 3.75"),
    ]
    assert all(row.sentence for row in table.rows[:6])
    assert [cell.text for cell in table.rows[3].cells[:2]] == ["1.75", "25 %"]


def test_the_section_follows_the_answer_on_page_and_screen(data: ReportData) -> None:
    ids = [section.id for section in report_sections(data)]
    assert ids[:2] == ["answer", "references"]
    page, text = render_page(data), render_text(data)
    assert f"<h2>{TITLE}</h2>" in page and SCRIPT not in page
    block = text[text.index(f"{TITLE} (with 95 % intervals)") :].splitlines()
    assert re.split(" {2,}", block[6].strip()) == [
        *("best list for everybody", "1.75 [1.50 to 2.00]"),
        *("25 % [12 to 38]", "2.50 [2.00 to 3.00]"),
    ]
    assert block[9] == "Checkpoints"
    assert block[14].startswith("  best list for everybody: Who do you live with? What do you eat")
    assert all(len(line) <= 100 for line in block)


def test_the_questions_of_the_constant_list_are_read(data: ReportData) -> None:
    assert data.main is not None
    assert data.main.references["constant"].questions == tuple(CONSTANT_LIST)
    assert data.main.references["gold_facts"].questions == ()


@pytest.mark.parametrize(
    ("mean", "half", "headline"),
    [
        (
            *(0.125, 0.25),
            "Skill of m2 is 0.12 (95 % interval \u22120.12 to 0.38): no better than the same "
            "questions for everybody.",
        ),
        (0.5, 0.25, "Skill of m2 is 0.50 (95 % interval 0.25 to 0.75): above a questionnaire."),
        (
            *(-0.5, 0.25),
            "Skill of m2 is \u22120.50 (95 % interval \u22120.75 to \u22120.25): below a "
            "questionnaire.",
        ),
    ],
)
def test_skill_is_the_headline_and_the_change_comes_after_it(
    copy: Path, mean: float, half: float, headline: str
) -> None:
    _, evaluation, found = edited(copy, skilled(mean, half))
    assert found.headline == headline
    assert found.sentences[0].text == (
        "Matched minus shuffled rose by 2.00 nats, from 1.25 to 3.25 (95 % interval of the change "
        "1.50 to 2.50)."
    )
    assert found.sentences[0].level == "good"
    marked = [row.label for row in measures_table(evaluation).rows if row.tone == "headline"]
    assert marked == ["skill"]


def test_the_first_tile_is_skill_and_four_are_shown(copy: Path) -> None:
    data, _, found = edited(copy, skilled(0.5, 0.25))
    opening = opening_section(data, found).parts[0].value
    assert opening.question == "Does it ask better than a questionnaire?"
    first = opening.tiles[0]
    assert (first.label, first.value, first.interval) == ("Skill", "0.50", "0.25 to 0.75")
    assert (first.note, first.tone) == ("at m2; m0: 0.05", "up")
    assert [tile.label for tile in opening.tiles[1:]] == [
        "Matched minus shuffled",
        "Facts elicited per dialogue",
        "Gold's facts elicited",
    ]


def test_skill_without_an_interval_gives_no_verdict(copy: Path) -> None:
    def change(tree: Any) -> None:
        tree["m2"]["skill"] = measured(0.5, 0.25) | {"ci_low": None, "ci_high": None}

    _, _, found = edited(copy, change)
    assert found.headline.startswith("Skill of m2 is 0.50, without an interval: nobody can say")


def test_a_single_checkpoint_has_a_skill_too(copy: Path) -> None:
    def change(tree: Any) -> None:
        skilled(0.5, 0.25)(tree)
        del tree["m1"], tree["m2"]
        tree["changes"] = {}

    _, _, found = edited(copy, change)
    assert found.headline.startswith("Skill of m0 is 0.05 (95 % interval")
    assert [sentence.text for sentence in found.sentences] == [
        "Only m0 was measured: there is nothing to compare it with."
    ]


def test_without_skill_the_change_is_the_headline_and_the_reason_a_caveat(copy: Path) -> None:
    def change(tree: Any) -> None:
        tree["m2"] |= {"no_skill": "told facts are not clearly above", "no_skill_coverage": "none"}

    _, evaluation, found = edited(copy, change)
    assert found.headline.startswith(FALLBACK)
    # What the headline says is not said again.
    assert not any(one.text.startswith("Matched minus shuffled") for one in found.sentences)
    caveats = [caveat.text for caveat in found.caveats]
    assert "There is no skill of m2: told facts are not clearly above." in caveats
    assert not {"no_skill", "no_skill_coverage"} & evaluation.names


def test_an_old_evaluation_has_no_section_and_the_headline_of_old(copy: Path) -> None:
    data, evaluation, found = edited(copy, lambda tree: tree.pop("reference"))
    assert found.headline.startswith(FALLBACK)
    assert evaluation.references == {}
    assert "references" not in [section.id for section in report_sections(data)]
    assert TITLE not in render_page(data) and TITLE not in render_text(data)
    assert not any("skill" in caveat.text for caveat in found.caveats)


def test_a_broken_row_is_a_data_error(copy: Path) -> None:
    with pytest.raises(DataError, match=r"eval\.json"):
        edited(copy, lambda tree: tree["reference"]["none"].pop("questions"))
