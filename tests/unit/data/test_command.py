"""`stargate data`: help, exit codes, what is printed and what never reaches a terminal."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stargate.data.showing import Screen
from stargate.errors import ExitCode
from stargate.launch.cli import main
from tests.fakes.data_folder import write_folder

TASK = {"id": "t", "text": "Eat?", "split": "A"}


Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What `stargate data` prints when it ends with `code`."""

    def run(*arguments: str | Path, code: int = 0) -> str:
        assert main(["data", *map(str, arguments)]) == code
        captured = capsys.readouterr()
        return captured.err if code == 3 else captured.out

    return run


def test_show_prints_pairs_readably(said: Said) -> None:
    out = said("show", "starter", "--task", "hobby", "--persona", "grace")
    assert "test      16      4         8     96     96     96        0" in out
    assert "--- hobby:grace (split test)" in out
    assert "   *  1  Our house by the lagoon near Apia has woven blinds instead of walls." in out
    assert "      2  I give my family half of my weekly wage of 300 tala." in out
    assert "\x1b" not in out
    assert all(len(line) <= 100 for line in out.splitlines()[1:])


def test_show_is_the_same_every_time_and_obeys_the_seed(said: Said) -> None:
    shown = []
    for seed in "001":
        out = said("show", "starter", "--n", "4", "--seed", seed)
        shown.append([line for line in out.splitlines() if line.startswith("---")])
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


def test_check_prints_a_table_and_writes_a_report(tmp_path: Path, said: Said) -> None:
    out = said("check", "starter", "--strict", "--json", tmp_path / "r.json")
    assert "golds        224   88   97     104  112  115" in out
    assert "kinds of errors: 0, of warnings: 2" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert [f["kind"] for f in report["findings"]] == ["ignores_persona", "unneeded_facts"]
    assert report["findings"][0]["cases"][0]["where"] == "workout:priya"
    assert report["words"]["golds"]["median"] == 104


def test_errors_fail_only_when_strict_and_limits_always(tmp_path: Path, said: Said) -> None:
    tasks = [TASK, {"id": "u", "text": "EAT", "split": "test"}]
    folder, faulty = write_folder(tmp_path / "d", tasks=tasks), ExitCode.FAULTY_DATA
    said("check", folder)
    said("check", folder, "--strict", code=faulty)
    said("check", "starter", "--max", "ignores_persona=1")
    said("check", "starter", "--max", "ignores_persona=0", code=faulty)
    out = said("check", "starter", "--max", "ignores_persona=0.004", code=faulty)
    assert "limit exceeded: ignores_persona: 1 (0.4%), at most 0.004" in out


def test_import_tells_what_it_found(tmp_path: Path, said: Said) -> None:
    (tmp_path / "t.csv").write_text("prompt,split\nEat  now?,A\nEat now,test\n,A\n")
    out = tmp_path / "out"
    printed = said("import", tmp_path / "t.csv", out)
    assert "found: 2 left out, 1 mended, 0 noted" in printed
    assert "     1 left out  task_in_two_splits: same text as a task of another split" in printed
    assert "          t.csv:2: kept: t.csv:3: Eat now?" in printed
    assert "--force" in said("import", tmp_path / "t.csv", out, code=3)
    assert "no pairs to show: it has no personas yet" in said("show", out)


def test_export_says_what_it_wrote(tmp_path: Path, said: Said) -> None:
    out = said("export", "starter", tmp_path / "s", "--format", "sft")
    assert f"{tmp_path}/s/A.jsonl: 64 conversations" in out
    out = said("export", "starter", tmp_path / "p", "--format", "parquet")
    assert "32 tasks, 24 personas, 224 golds" in out


def test_text_from_data_cannot_steer_the_terminal(tmp_path: Path, said: Said) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07 [red]x[/red] \u202e"
    folder = write_folder(
        tmp_path / "d",
        tasks=[{**TASK, "text": f"Eat {evil}?"}, {"id": "u", "text": f"eat {evil}", "split": "B"}],
        personas=[{"id": "p", "name": evil, "text": evil, "split": "A", "facts": [evil]}],
        golds=[{"task_id": "t", "persona_id": "p", "text": evil}],
    )
    for command in ("show", "check"):
        out = said(command, folder)
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
