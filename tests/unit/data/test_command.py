"""`stargate data`: help, exit codes, what is printed and what never reaches a terminal."""

import io
import json
from pathlib import Path

import pytest

from stargate.data.showing import Screen
from stargate.errors import ExitCode
from stargate.launch.cli import main
from tests.fakes.data_folder import write_folder

TASK = {"id": "t", "text": "Eat?", "split": "A"}


def test_show_prints_pairs_readably(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "starter", "--task", "hobby", "--persona", "grace"]) == 0
    out = capsys.readouterr().out
    assert "test      16      4         8     96     96     96        0" in out
    assert "--- hobby:grace (split test)" in out
    assert "   *  1  Our house by the lagoon near Apia has woven blinds instead of walls." in out
    assert "      2  I give my family half of my weekly wage of 300 tala." in out
    assert "\x1b" not in out
    assert all(len(line) <= 100 for line in out.splitlines()[1:])


def test_show_is_the_same_every_time_and_obeys_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for seed in ("0", "0", "1"):
        assert main(["data", "show", "starter", "--n", "4", "--seed", seed]) == 0
        shown.append([x for x in capsys.readouterr().out.splitlines() if x.startswith("---")])
    assert len(shown[0]) == 4
    assert shown[0] == shown[1] != shown[2]


def test_what_does_not_exist_is_one_line_with_what_does(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["show", "starter", "--task", "nope"], "no task 'nope'; there are: week-meals,"),
        (["show", "starter", "--split", "C"], "no split 'C'; there are: A, B, test"),
        (["show", "starter", "--task", "hobby", "--persona", "rosa"], "no pair fits"),
        (["check", "/nowhere"], "no such dataset folder"),
        (["check", "starter", "--max", "x=1"], "no such kind; known: task_in_two_splits,"),
        (["export", "/nowhere", "out", "--format", "hf"], "no such dataset folder"),
    ):
        assert main(["data", *arguments]) == 3
        captured = capsys.readouterr()
        assert expected in captured.err and captured.err.count("\n") == 1
        assert captured.out == ""


def test_check_prints_a_table_and_writes_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", "starter", "--strict", "--json", f"{tmp_path}/r.json"]) == 0
    out = capsys.readouterr().out
    assert "golds        224   88   97     104  112  115" in out
    assert "kinds of errors: 0, of warnings: 2" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert [f["kind"] for f in report["findings"]] == ["ignores_persona", "unneeded_facts"]
    assert report["findings"][0]["cases"][0]["where"] == "workout:priya"
    assert report["words"]["golds"]["median"] == 104


def test_errors_fail_only_when_strict_and_limits_always(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [TASK, {"id": "u", "text": "EAT", "split": "test"}]
    folder = str(write_folder(tmp_path / "d", tasks=tasks))
    assert main(["data", "check", folder]) == 0
    assert main(["data", "check", folder, "--strict"]) == ExitCode.FAULTY_DATA
    assert main(["data", "check", "starter", "--max", "ignores_persona=1"]) == 0
    assert main(["data", "check", "starter", "--max", "ignores_persona=0"]) == ExitCode.FAULTY_DATA
    assert (
        main(["data", "check", "starter", "--max", "ignores_persona=0.004"]) == ExitCode.FAULTY_DATA
    )
    assert "limit exceeded: ignores_persona: 1 (0.4%), at most 0.004" in capsys.readouterr().out


def test_import_tells_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("prompt,split\nEat  now?,A\nEat now,test\n,A\n")
    out = str(tmp_path / "out")
    assert main(["data", "import", f"{tmp_path}/t.csv", out]) == 0
    printed = capsys.readouterr().out
    assert "found: 2 left out, 1 mended, 0 noted" in printed
    assert "     1 left out  task_in_two_splits: same text as a task of another split" in printed
    assert "          t.csv:2: kept: t.csv:3: Eat now?" in printed
    assert main(["data", "import", f"{tmp_path}/t.csv", out]) == 3
    assert "--force" in capsys.readouterr().err
    assert main(["data", "show", out]) == 0
    assert "no pairs to show: it has no personas yet" in capsys.readouterr().out


def test_export_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "export", "starter", f"{tmp_path}/s", "--format", "sft"]) == 0
    assert f"{tmp_path}/s/A.jsonl: 64 conversations" in capsys.readouterr().out
    assert main(["data", "export", "starter", f"{tmp_path}/p", "--format", "parquet"]) == 0
    assert "32 tasks, 24 personas, 224 golds" in capsys.readouterr().out


def test_text_from_data_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07 [red]x[/red] \u202e"
    folder = write_folder(
        tmp_path / "d",
        tasks=[{**TASK, "text": f"Eat {evil}?"}, {"id": "u", "text": f"eat {evil}", "split": "B"}],
        personas=[{"id": "p", "name": evil, "text": evil, "split": "A", "facts": [evil]}],
        golds=[{"task_id": "t", "persona_id": "p", "text": evil}],
    )
    for arguments in (["show"], ["check"]):
        assert main(["data", *arguments, str(folder)]) == 0
        out = capsys.readouterr().out
        assert not {"\x1b", "\x07", "\u202e"} & set(out)
        assert "\\x1b[2J" in out and "[red]x[/red]" in out


def test_a_terminal_gets_colours_but_no_markup_from_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    screen = Screen(out)
    screen.line("[red]plain[/red] \x1b[31m", "error")
    screen.table(("level", "n"), [["warning", "[b]1[/b]\x1b"]], numbers=frozenset({1}))
    text = out.getvalue()
    assert "[red]plain[/red] \\x1b[31m" in text and "[b]1[/b]\\x1b" in text
    assert "\x1b[1;31m" in text  # our own style for an error


def test_output_of_another_encoding_escapes_what_it_lacks() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Screen(out).line("Jos\u00e9")
    out.flush()
    assert raw.getvalue() == b"Jos\\xe9\n"
