"""What the user types, what stands in the dialogue, what is shown and kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stargate.launch.conversation import Conversation, Message, Screen, side_by_side


class Parrot:
    """Says its name and how many messages it saw."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[list[Message]] = []

    def reply(
        self, messages: Sequence[Message], *, ask: bool, hear: Callable[[str], None] | None
    ) -> str:
        self.seen.append(list(messages))
        text = f"{self.name} {'asks' if ask else 'answers'} {len(messages)}\x1b[31m"
        if hear is not None:
            hear(text)
        return text


class Talk:
    def __init__(self, *names: str) -> None:
        self.parrots = [Parrot(name) for name in names]
        self.shown = ""
        screen = Screen(self._write, 60)
        self.conversation = Conversation(self.parrots, screen, {"run": "r"}, num_trained=2)

    def _write(self, text: str) -> None:
        self.shown += text

    def say(self, *lines: str) -> list[bool]:
        return [self.conversation.hears(line) for line in lines]

    @property
    def contents(self) -> list[str]:
        return [message["content"].split("\x1b")[0] for message in self.conversation.messages]


def test_questions_follow_each_other_and_an_answer_ends_the_dialogue() -> None:
    talk = Talk("m1")
    assert talk.say("bike?", "far", "/answer") == [True, True, True]
    # The second question was left open: the answer stands in its place.
    assert talk.contents == ["bike?", "m1 asks 1", "far", "m1 answers 3"]
    assert talk.parrots[0].seen[-1][-1] == {"role": "user", "content": "far"}
    talk.say("soup?")
    assert talk.contents == ["soup?", "m1 asks 1"]


def test_what_a_model_says_can_not_colour_the_terminal() -> None:
    talk = Talk("m1", "m0")
    talk.say("bike?")
    single = Talk("m1")
    single.say("bike?")
    assert "\x1b" not in talk.shown + single.shown
    assert "m1: m1 asks 1\\x1b[31m\n" in single.shown


def test_both_see_the_dialogue_of_the_first() -> None:
    talk = Talk("m1", "m0")
    talk.say("bike?", "far")
    assert talk.contents == ["bike?", "m1 asks 1", "far", "m1 asks 3"]
    assert talk.parrots[0].seen == talk.parrots[1].seen
    row = next(line for line in talk.shown.splitlines() if "m0 asks 1" in line)
    assert row.index("m1 asks 1") < row.index(" | ") < row.index("m0 asks 1")


def test_more_questions_than_in_training_are_said_to_be() -> None:
    talk = Talk("m1")
    talk.say("bike?")
    assert "training had" not in talk.shown
    talk.say("far")
    assert "(training had up to 2 questions; /answer ends)" in talk.shown


def test_the_dialogue_is_kept_as_json(tmp_path: Path) -> None:
    talk = Talk("m1", "m0")
    file = tmp_path / "dialogue.json"
    talk.say("bike?", "/answer", f"/save {file}")
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
    assert kept["run"] == "r" and kept["others"][0]["m0"].startswith("m0 answers 1")
    assert f"saved: {file}" in talk.shown


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/answer", "nothing to answer yet: say first what you want"),
        ("/save", "/save needs a file: /save dialogue.json"),
        ("/save /proc/none/x.json", "not saved: /proc/none"),
        ("/anwser", "no command /anwser: /answer ends"),
    ],
)
def test_a_wrong_line_is_told_and_the_dialogue_goes_on(line: str, said: str) -> None:
    talk = Talk("m1")
    assert talk.say(line, "", "bike?") == [True, True, True]
    assert said in talk.shown
    assert talk.contents == ["bike?", "m1 asks 1"]


def test_quit_leaves() -> None:
    assert Talk("m1").say("/quit") == [False]


def test_columns_keep_to_the_width() -> None:
    rows = list(side_by_side(["a", "b"], ["one two three four five six", "x\n\ny"], 25))
    assert rows[0].split() == ["a", "|", "b"]
    assert all(len(row) <= 25 for row in rows)
    left = " ".join(row.split(" | ")[0].strip(" |") for row in rows[1:])
    assert " ".join(left.split()) == "one two three four five six"
