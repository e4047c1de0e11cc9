"""What is shown, in plain lines, and that model text can't move a terminal's cursor."""

import io
import re
from types import SimpleNamespace

import pytest

from stargate.monitoring import progress as module
from stargate.monitoring.progress import LiveProgress, PlainProgress, safe_text


def test_a_stage_says_how_it_began_and_ended() -> None:
    out = io.StringIO()
    with PlainProgress(out).stage("score", 3, "dialogues") as stage:
        for _ in range(3):
            stage.advance(tokens=10)
    first, last = out.getvalue().splitlines()
    assert first == "score: 3 dialogues"
    assert last.startswith("score: done in ")
    assert "3/3 dialogues" in last
    assert "tokens/s" in last


def test_a_stage_that_never_began_says_nothing() -> None:
    out = io.StringIO()
    with PlainProgress(out).stage("respond", 3, "pairs"):
        pass
    assert out.getvalue() == ""


def test_lines_between_tell_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with PlainProgress(out).stage("train", 4, "steps") as stage:
        stage.begin()
        stage.note("loss 1.5")
        for _ in range(2):
            now[0] += 11.0
            stage.advance(tokens=110)
    assert out.getvalue().splitlines() == [
        "train: 4 steps",
        "train: 1/4 steps, 10 tokens/s, 33 s left, loss 1.5",
        "train: 2/4 steps, 10 tokens/s, 22 s left, loss 1.5",
        "train: done in 22.0 s, 2/4 steps, 10 tokens/s, 22 s left, loss 1.5",
    ]


def test_live_stages_can_run_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    live = LiveProgress()
    with live.stage("a", 2, "x") as a, live.stage("b", 2, "y") as b:
        a.begin()
        now[0] += 2.0
        a.advance(tokens=30)
        b.advance(2)
        b.note("loss 1.5")
        live.say("text with [brackets]")
    with live.stage("c", 1, "z") as c:
        c.advance()
    # Where the output is no terminal, rich draws the bars once, when they stop.
    said, *bars = filter(str.strip, capsys.readouterr().out.splitlines())
    assert said == "text with [brackets]"
    shown = [re.sub(r"[━╸╺ ]+|[\d-]+:\S+", " ", line).split() for line in bars]
    assert [" ".join(words) for words in shown] == [
        "a 1/2 x 15 tokens/s left",  # and rich's own times
        "b 2/2 y left loss 1.5",
        "c 1/1 z left",
    ]


def test_control_characters_are_escaped() -> None:
    assert safe_text("a\x1b[31mred\x07\r\n") == "a\\x1b[31mred\\x07\\x0d\n"
    assert safe_text("right\u202eleft") == "right\\u202eleft"
    assert safe_text("naïve 中文 🙂") == "naïve 中文 🙂"
