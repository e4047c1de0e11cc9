"""`stargate chat` with a tiny model in this process: what is shown, kept and refused."""

import asyncio
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from stargate.launch.cli import main
from stargate.launch.speakers import Speakers
from stargate.types import Answer, Pair, StopReason, Turn, told_facts
from tests.integration.trained_run import save_trained_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    return save_trained_run(tmp_path_factory.mktemp("run"), embedded)


def test_a_dialogue_is_asked_answered_and_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.json"
    lines = ["Which bike?", "Far", "/answer", f"/save {file}"]  # then the input ends
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(run), "--name", "Ann"]) == 0
    shown = capsys.readouterr().out
    kept = json.loads(file.read_text(encoding="utf-8"))
    roles = [message["role"] for message in kept["messages"]]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert kept["checkpoint"] == "m1" and shown.count("m1: ") == 3


def test_what_streams_is_what_was_said(run: Path) -> None:
    with Speakers(run, None) as speakers:
        speaker = speakers.open("m1", None)
        pieces: list[str] = []
        messages = [{"role": "user", "content": "Which bike should I buy?"}]
        said = speaker.reply(messages, ask=True, hear=pieces.append)
        assert "".join(pieces).strip() == said and said
        assert speaker.reply(messages, ask=True, hear=None) == said
        other = [{"role": "user", "content": "Which book?"}]
        assert speaker.reply(other, ask=True, hear=None) != said


def test_the_simulated_user_answers_from_its_facts(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Which bike should I buy?\n/quit\n"))
    assert main(["chat", str(run), "--persona", "rosa"]) == 0
    shown = capsys.readouterr().out
    # A random model asks nothing that a fact answers: the user says so, as often as it is asked.
    assert shown.count("Rosa Delgado: ") == 3
    assert shown.count("m1: ") == 4


@pytest.mark.parametrize(("final", "expected"), [(2, [set(), {0}]), (3, [set(), {0}, set()])])
def test_the_simulated_user_remembers_and_may_end_the_dialogue(
    run: Path,
    final: int,
    expected: list[set[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = [
        Answer("I ride far.", None, StopReason.STOP, elicited=(0,)),
        Answer("That is not true.", None, StopReason.FIXED, retracted=(0,), final=final == 2),
        Answer("Just answer.", None, StopReason.FIXED, final=True),
    ]
    told: list[set[int]] = []

    async def roleplay(
        pair: Pair, turns: Sequence[Turn], question: str, *, session: str, seed: int
    ) -> Answer:
        told.append(set(told_facts(turns)))
        return answers[len(turns)]

    with asyncio.Runner() as runner:
        monkeypatch.setattr(Speakers, "_opened_user", lambda self: (roleplay, runner))
        monkeypatch.setattr("sys.stdin", io.StringIO("Which bike should I buy?\n"))
        assert main(["chat", str(run), "--persona", "rosa"]) == 0
    assert told == expected
    assert capsys.readouterr().out.count("m1: ") == final + 1  # the questions, then the answer


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--checkpoint", "m5"], "checkpoint 'm5' is not one of m0, m1"),
        (["--compare", "m5"], "checkpoint 'm5' is not one of m0, m1"),
        (["--persona", "nobody"], "--persona: starter has no persona 'nobody'; it has amina"),
    ],
)
def test_what_is_not_there_is_one_line(
    run: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(run), *options]) == 2
    assert capsys.readouterr().err.startswith(f"stargate chat: {said}")


def test_a_dialogue_longer_than_the_context_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("bike " * 600))
    assert main(["chat", str(run)]) == 3
    assert "tokens, the model's context 512: begin a new one" in capsys.readouterr().err
