"""The report in a terminal, and the command."""

import argparse
import shutil
from pathlib import Path

import pytest

from stargate.errors import DataError
from stargate.launch import report
from stargate.report.data import load_report
from stargate.report.records import ReportData
from stargate.report.text import WIDTH, render_text
from tests.fakes.report_run import build_halted_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def text(data: ReportData) -> str:
    return render_text(data)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    report.configure(parser)
    return report.run(parser.parse_args(arguments))


def test_the_answer_is_first(text: str) -> None:
    assert text.splitlines()[:4] == [
        "tiny-20260101-000000: finished",
        "",
        "Yes, m2 beats m0: matched minus shuffled rose by 2.00 nats, from 1.25 to 3.25 (95 % "
        "interval of the",
        "change 1.50 to 2.50).",
    ]


def test_every_part_is_there(text: str) -> None:
    lines = text.splitlines()
    for line in (
        "Caveats",
        "Measures on test (change with its 95 % interval)",
        "Judge judge-135m",
        "Evaluation strict",
        "By task: matched minus shuffled (nats), facts elicited",
        "By persona: matched minus shuffled (nats), facts elicited",
        "Selection (gold)",
        "Training",
        "Wall time by stage",
        "Dropped records",
    ):
        assert line in lines, line
    for words in (
        "shuffled                          1.2      2.2      3.2     +2.0  +1.5 to +2.5",
        "gold_rate                                      0.50  FAILED, must be >= 0.6 (n = 4)",
        "  Ana Ruiz                                   2      1.0      3.0     +2.0",
        "iteration 1: 4 pairs, the chosen dialogue scores +1.0 nats above its pair's mean",
        "iteration 1 (m2): 4 examples, 2 steps, loss 2.000 -> 1.500, validation 2.250",
        "rollouts: 24 dialogues, 1200 tokens, 6.0 tokens/s",
        "  2 prompt_too_long",
    ):
        assert words in text, words


def test_no_line_is_longer_than_the_screen(text: str) -> None:
    assert max(map(len, text.splitlines())) <= WIDTH


def test_model_text_cannot_control_the_terminal(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    summary = copy / "summary.json"
    nasty = r"\u001b[2J\u202erun\u0007"
    summary.write_text(summary.read_text().replace("t0/y: long", nasty))
    text = render_text(load_report(copy))
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text
    assert r"\x1b[2J\u202erun\x07" in text


def test_the_median_dialogue_is_shown_before_and_after(text: str) -> None:
    block = text[text.index("The dialogue with the median change") :].splitlines()[2:12]
    assert block == [
        "m0, Ana Ruiz: Can you plan meal 1 <u>for me</u> (test)? (+1.0 nats)",
        "  Questioner: Who lives with you, m0? [+3.0 nats]",
        "  Roleplayer: I live with <b>two cats</b>. (facts 0)",
        "  Questioner: I see. [+1.0 nats]",
        "  Roleplayer: No onions.",
        "m2, Ana Ruiz: Can you plan meal 1 <u>for me</u> (test)? (+3.0 nats)",
        "  Questioner: Who lives with you, m2? [+5.0 nats]",
        "  Roleplayer: I live with <b>two cats</b>. (facts 0)",
        "  Questioner: What do you never eat? [+3.0 nats]",
        "  Roleplayer: No onions. (facts 1)",
    ]


def test_a_halted_run_is_told_as_one(tmp_path: Path) -> None:
    text = render_text(load_report(build_halted_run(tmp_path)))
    assert "Nothing was measured" in text
    assert "! The run did not end as planned (not finished): 0 of 2 iterations" in text
    assert text.endswith("Dropped records\n---------------\n  not known\n")


def test_the_command_writes_the_page_and_says_the_answer(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "deep" / "page.html"
    assert run(str(run_dir), "--out", str(target)) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("Yes, m2 beats m0")
    assert out[1] == f"report: {target}"
    assert target.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert not (run_dir / "report.html").exists()


def test_the_page_goes_into_the_run_by_default(tmp_path: Path) -> None:
    halted = build_halted_run(tmp_path)
    assert run(str(halted)) == 0
    assert (halted / "report.html").is_file()


def test_text_alone_writes_nothing(
    run_dir: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(run_dir), "--text") == 0
    assert capsys.readouterr().out == text
    assert not (run_dir / "report.html").exists()


def test_errors_are_one_line(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        run(str(run_dir), "--out", str(tmp_path))
    with pytest.raises(DataError, match="not a run directory"):
        run(str(tmp_path), "--text")
