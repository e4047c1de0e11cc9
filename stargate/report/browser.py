"""The dialogues as compact JSON inside the page, for the scripts in report/templates.

    ReportData.dialogues -> tables of texts, tasks, personas, pairs, scopes
        -> rows of indices into them -> JSON that can't end its <script> element

10,000 dialogues say few different things in many places (a fact told, "I have no preference"), so
every text stands once. The layout of the rows is read back by templates/records.js:

    scopes     [{id, source, sourceLabel, kind, version, label, short}]
    tasks      [id, text]
    personas   [id, name, [fact text]]
    pairs      [task, persona, gold text | null, [gold fact], log-prob without a dialogue | null]
    dialogues  [scope, pair, index, gold log-prob | null, chosen 0/1, turns, responses,
                selection score | null, log-prob after another persona's dialogue | null]
    turns      [question text, answer text, [fact], gain | null]
    responses  [version, text]
"""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stargate.report.records import TEST, TRAIN, DialogueView, ReportData, Texts, TurnView

# Decimals of a log-prob in nats: the page shows one.
_DIGITS = 2
_NO_TEXTS = Texts(tasks={}, personas={}, golds={}, problem=None)

# What must not stand in a <script> element as it is: "</script>" ends it, "<!--" changes how it
# is read, and the two line separators once ended JavaScript strings.
_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def script_json(value: Any) -> str:
    """JSON that is safe inside <script type="application/json">. Raises ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate can't be written as UTF-8; JSON's own escape can.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.translate(_ESCAPES)


def browser_data(data: ReportData) -> dict[str, Any]:
    """Everything that the dialogue browser shows, as plain values."""
    tables = _Tables(data)
    rows = [tables.dialogue(dialogue) for dialogue in data.dialogues]
    return {
        "texts": tables.texts.entries,
        "scopes": tables.scopes.entries,
        "tasks": tables.tasks.entries,
        "personas": tables.personas.entries,
        "pairs": tables.pairs.entries,
        "dialogues": rows,
    }


def scope_id(dialogue: DialogueView) -> str:
    """Where a dialogue stands in the run directory, e.g. "eval-m1", "evaluations/other/eval-m1"."""
    name = f"t{dialogue.version}" if dialogue.source == TRAIN else f"eval-m{dialogue.version}"
    return name if dialogue.source in (TRAIN, TEST) else f"{dialogue.source}/{name}"


def source_label(source: str) -> str:
    """A source in a person's words."""
    if source == TRAIN:
        return "training rollouts"
    return "evaluation" if source == TEST else f"evaluation: {source.removeprefix('evaluations/')}"


@dataclass
class _Table:
    """Entries, each once: `index` adds what is not there yet."""

    entries: list[Any] = field(default_factory=list)
    _places: dict[Hashable, int] = field(default_factory=dict)

    def index(self, key: Hashable, entry: Any) -> int:
        if key not in self._places:
            self._places[key] = len(self.entries)
            self.entries.append(entry)
        return self._places[key]

    def place(self, key: Hashable) -> int | None:
        return self._places.get(key)


class _Tables:
    """What the rows refer to, gathered while they are written."""

    def __init__(self, data: ReportData) -> None:
        self._by_source = data.texts
        self.texts, self.scopes, self.tasks = _Table(), _Table(), _Table()
        self.personas, self.pairs = _Table(), _Table()
        present = {(dialogue.version, dialogue.source): dialogue for dialogue in data.dialogues}
        sources = list(dict.fromkeys(evaluation.source for evaluation in data.evaluations))
        order = {source: place for place, source in enumerate([*sources, TRAIN])}
        for version, source in sorted(
            present, key=lambda entry: (order.get(entry[1], len(order)), entry[0])
        ):
            self._scope(present[version, source])

    def dialogue(self, dialogue: DialogueView) -> list[Any]:
        return [
            self._scope(dialogue),
            self._pair(dialogue),
            dialogue.index,
            _rounded(dialogue.gold_logprob),
            int(dialogue.chosen is True),
            [self._turn(turn) for turn in dialogue.turns],
            [[response.version, self._text(response.text)] for response in dialogue.responses],
            _rounded(dialogue.score),
            _rounded(dialogue.shuffled),
        ]

    def _turn(self, turn: TurnView) -> list[Any]:
        texts = [self._text(turn.question), self._text(turn.answer)]
        return [*texts, list(turn.elicited), _rounded(turn.gain)]

    def _text(self, text: str) -> int:
        return self.texts.index(text, text)

    def _scope(self, dialogue: DialogueView) -> int:
        key = scope_id(dialogue)
        training = dialogue.source == TRAIN
        return self.scopes.index(
            key,
            {
                "id": key,
                "source": dialogue.source,
                "sourceLabel": source_label(dialogue.source),
                "kind": "training" if training else "evaluation",
                "version": dialogue.version,
                "label": f"m{dialogue.version}, {source_label(dialogue.source)}",
                "short": f"t{dialogue.version}" if training else _short(dialogue.source),
            },
        )

    def _pair(self, dialogue: DialogueView) -> int:
        """A pair of two sources stands twice: their data may differ under the same ids."""
        key = (dialogue.source, dialogue.pair_id)
        place = self.pairs.place(key)
        if place is None:
            texts = self._by_source.get(dialogue.source, _NO_TEXTS)
            gold = texts.golds.get(dialogue.pair_id)
            gold_entry = [None, []] if gold is None else [self._text(gold.text), list(gold.facts)]
            entry = [self._task(dialogue, texts), self._persona(dialogue, texts), *gold_entry, None]
            place = self.pairs.index(key, entry)
        if self.pairs.entries[place][-1] is None:
            self.pairs.entries[place][-1] = _rounded(dialogue.no_dialogue)
        return place

    def _task(self, dialogue: DialogueView, texts: Texts) -> int:
        task = texts.tasks.get(dialogue.task_id)
        entry = [dialogue.task_id, task.text if task else dialogue.task_id]
        return self.tasks.index(tuple(entry), entry)

    def _persona(self, dialogue: DialogueView, texts: Texts) -> int:
        persona = texts.personas.get(dialogue.persona_id)
        name = persona.name if persona else dialogue.persona_id
        facts: Sequence[str] = persona.facts if persona else ()
        key = (dialogue.persona_id, name, tuple(facts))
        return self.personas.index(key, [dialogue.persona_id, name, list(facts)])


def _short(source: str) -> str:
    return source.removeprefix("evaluations/")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
