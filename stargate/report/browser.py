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
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from stargate.report.records import TEST, TRAIN, DialogueView, ReportData

# Decimals of a log-prob in nats: the page shows one.
_DIGITS = 2

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
    tables = _Tables()
    sources = [*dict.fromkeys(evaluation.source for evaluation in data.evaluations), TRAIN]
    for dialogue in sorted(data.dialogues, key=lambda d: (sources.index(d.source), d.version)):
        tables.scope(dialogue)
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


class _Tables:
    """What the rows refer to, gathered while they are written."""

    def __init__(self) -> None:
        self.texts, self.scopes, self.tasks = _Table(), _Table(), _Table()
        self.personas, self.pairs = _Table(), _Table()

    def dialogue(self, dialogue: DialogueView) -> list[Any]:
        return [
            self.scope(dialogue),
            self._pair(dialogue),
            dialogue.index,
            _rounded(dialogue.gold_logprob),
            int(dialogue.chosen is True),
            [
                [
                    self._text(turn.question),
                    self._text(turn.answer),
                    list(turn.elicited),
                    _rounded(turn.gain),
                ]
                for turn in dialogue.turns
            ],
            [[response.version, self._text(response.text)] for response in dialogue.responses],
            _rounded(dialogue.score),
            _rounded(dialogue.shuffled),
        ]

    def scope(self, dialogue: DialogueView) -> int:
        key, source, version = scope_id(dialogue), dialogue.source, dialogue.version
        training = source == TRAIN
        name = source.removeprefix("evaluations/")
        label = "evaluation" if source == TEST else f"evaluation: {name}"
        if training:
            label = "training rollouts"
        entry = {
            "id": key,
            "source": source,
            "sourceLabel": label,
            "kind": "training" if training else "evaluation",
            "version": version,
            "label": f"m{version}, {label}",
            "short": f"t{version}" if training else name,
        }
        return self.scopes.index(key, entry)

    def _text(self, text: str) -> int:
        return self.texts.index(text, text)

    def _pair(self, dialogue: DialogueView) -> int:
        """A pair of two sources stands twice: their data may differ under the same ids."""
        pair, alone = dialogue.pair, _rounded(dialogue.no_dialogue)
        task, persona = pair.task, pair.persona
        entry = [
            self.tasks.index((task.id, task.text), [task.id, task.text]),
            self.personas.index(
                (persona.id, persona.name, persona.facts),
                [persona.id, persona.name, list(persona.facts)],
            ),
            None if pair.gold is None else self._text(pair.gold),
            list(pair.gold_facts),
            alone,
        ]
        place = self.pairs.index((dialogue.source, pair.id), entry)
        if self.pairs.entries[place][-1] is None:
            self.pairs.entries[place][-1] = alone
        return place


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
