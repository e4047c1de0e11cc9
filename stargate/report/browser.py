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
from collections import defaultdict
from itertools import count
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
    sources = [*dict.fromkeys(evaluation.source for evaluation in data.evaluations), TRAIN]
    by_scope = sorted(data.dialogues, key=lambda d: (sources.index(d.source), d.version))
    scopes = {scope_id(dialogue): _scope(dialogue) for dialogue in by_scope}
    scope_places = {key: place for place, key in enumerate(scopes)}
    texts, tasks, personas, pairs = (_places() for _ in range(4))
    alone: dict[int, float | None] = {}  # the first known of each pair
    rows = []
    for dialogue in data.dialogues:
        pair = dialogue.pair
        task, persona = pair.task, pair.persona
        place = pairs[
            dialogue.source,  # their data may differ under the same ids
            tasks[task.id, task.text],
            personas[persona.id, persona.name, persona.facts],
            None if pair.gold is None else texts[pair.gold],
            pair.gold_facts,
        ]
        if alone.get(place) is None:
            alone[place] = _rounded(dialogue.no_dialogue)
        turns = [
            [texts[turn.question], texts[turn.answer], [*turn.elicited], _rounded(turn.gain)]
            for turn in dialogue.turns
        ]
        rows.append(
            [
                scope_places[scope_id(dialogue)],
                place,
                dialogue.index,
                _rounded(dialogue.gold_logprob),
                int(dialogue.chosen is True),
                turns,
                [[response.version, texts[response.text]] for response in dialogue.responses],
                _rounded(dialogue.score),
                _rounded(dialogue.shuffled),
            ]
        )
    return {
        "texts": list(texts),
        "scopes": list(scopes.values()),
        "tasks": list(tasks),
        "personas": list(personas),
        "pairs": [[*key[1:-1], [*key[-1]], alone[place]] for key, place in pairs.items()],
        "dialogues": rows,
    }


def scope_id(dialogue: DialogueView) -> str:
    """Where a dialogue stands in the run directory, e.g. "eval-m1", "evaluations/other/eval-m1"."""
    name = f"t{dialogue.version}" if dialogue.source == TRAIN else f"eval-m{dialogue.version}"
    return name if dialogue.source in (TRAIN, TEST) else f"{dialogue.source}/{name}"


def _scope(dialogue: DialogueView) -> dict[str, Any]:
    source, version, training = dialogue.source, dialogue.version, dialogue.source == TRAIN
    name = source.removeprefix("evaluations/")
    label = "evaluation" if source == TEST else f"evaluation: {name}"
    if training:
        label = "training rollouts"
    return {
        "id": scope_id(dialogue),
        "source": source,
        "sourceLabel": label,
        "kind": "training" if training else "evaluation",
        "version": version,
        "label": f"m{version}, {label}",
        "short": f"t{version}" if training else name,
    }


def _places() -> defaultdict[Any, int]:
    """The place of each key, in the order in which they are first asked for."""
    return defaultdict(count().__next__)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
