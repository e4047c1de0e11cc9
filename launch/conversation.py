"""A conversation with one or two checkpoints: what is asked, answered, shown and kept.

    user's words -> every speaker's next question, side by side -> the first one's stands -> ...
    /answer -> the speakers' answers -> the next words begin a new dialogue

Knows neither torch nor a terminal: speakers, the user and the screen come from outside.
"""

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stargate.errors import MachineError
from stargate.monitoring.progress import safe_text
from stargate.records.files import write_text

HELP = "/answer ends with an answer, /save FILE keeps the dialogue as JSON, /quit leaves"

Message = dict[str, str]
Hear = Callable[[str], None]


class Speaker(Protocol):
    """A checkpoint that speaks."""

    name: str

    def reply(self, messages: Sequence[Message], *, ask: bool, hear: Hear | None) -> str:
        """Its next question, or its answer; `hear` gets the text while it is written."""
        ...


@dataclass
class Screen:
    """Writes for people: foreign text can't control the terminal."""

    write: Callable[[str], None]
    width: int

    def line(self, text: str = "") -> None:
        self.write(safe_text(text) + "\n")

    def piece(self, text: str) -> None:
        self.write(safe_text(text))


@dataclass
class Conversation:
    """The dialogue so far. With several speakers the first one's questions stand in it."""

    speakers: Sequence[Speaker]
    screen: Screen
    about: dict[str, Any]
    num_trained: int  # questions of the longest dialogue in training
    messages: list[Message] = field(default_factory=list)
    others: list[dict[str, str]] = field(default_factory=list)  # what else was said, by name
    ended: bool = False

    def hears(self, words: str) -> bool:
        """Takes one line of the user. False: the user leaves."""
        words = words.strip()
        command, _, argument = words.partition(" ")
        if command == "/quit":
            return False
        if command == "/save":
            self._save(argument.strip())
        elif command == "/answer":
            self.answers()
        elif command.startswith("/"):
            self.screen.line(f"no command {command}: {HELP}")
        elif words:
            self.asks(words)
            if self.num_questions == self.num_trained:
                self.screen.line(f"(training had up to {self.num_trained} questions; /answer ends)")
        return True

    def asks(self, words: str) -> str:
        """The user's words, then the next question. After an answer they begin a new dialogue."""
        if self.ended:
            self.messages, self.others, self.ended = [], [], False
        self.messages.append({"role": "user", "content": words})
        return self._speak(ask=True)

    def answers(self) -> None:
        """The speakers' answers end the dialogue."""
        if not self.messages or self.ended:
            self.screen.line("nothing to answer yet: say first what you want")
            return
        if self.messages[-1]["role"] == "assistant":  # the question that stands is left open
            self.messages.pop()
            self.others.pop()
        self._speak(ask=False)
        self.ended = True

    @property
    def num_questions(self) -> int:
        return sum(message["role"] == "assistant" for message in self.messages)

    def _speak(self, *, ask: bool) -> str:
        names = [speaker.name for speaker in self.speakers]
        if len(self.speakers) == 1:
            self.screen.piece(f"{names[0]}: ")
            said = [self.speakers[0].reply(self.messages, ask=ask, hear=self.screen.piece)]
            self.screen.line()
        else:
            said = [one.reply(self.messages, ask=ask, hear=None) for one in self.speakers]
            for row in side_by_side(names, said, self.screen.width):
                self.screen.line(row)
        self.messages.append({"role": "assistant", "content": said[0]})
        self.others.append(dict(zip(names[1:], said[1:], strict=True)))
        return said[0]

    def _save(self, name: str) -> None:
        if not name:
            self.screen.line("/save needs a file: /save dialogue.json")
            return
        content = {**self.about, "messages": self.messages}
        if len(self.speakers) > 1:
            content["others"] = self.others
        try:
            write_text(Path(name), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        except MachineError as error:  # the dialogue goes on
            self.screen.line(f"not saved: {error}")
            return
        except OSError as error:
            self.screen.line(f"not saved: {name}: {error.strerror}")
            return
        self.screen.line(f"saved: {name}")


def side_by_side(titles: Sequence[str], texts: Sequence[str], width: int) -> Iterator[str]:
    """Texts in columns under their titles, in lines of at most `width`."""
    column = max((width - 3 * (len(titles) - 1)) // len(titles), 8)
    cells = [
        [
            title,
            *(line for part in text.splitlines() for line in textwrap.wrap(part, column) or [""]),
        ]
        for title, text in zip(titles, texts, strict=True)
    ]
    for number in range(max(map(len, cells))):
        row = [cell[number] if number < len(cell) else "" for cell in cells]
        yield " | ".join(f"{text:<{column}}" for text in row).rstrip()
