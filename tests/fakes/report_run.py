"""Builds a small but complete run directory, through RunStore, for the tests of the report.

    build_run(folder)                          2 iterations, m0..m2, everything there: 60 dialogues
    build_run(folder, num_dialogues=10_000)    the same shape with about so many
    build_halted_run(folder)                   m0 and half an iteration: no summary, no eval.json

Splits A (t0), B (t1) and test have tasks 0..n-1 and personas 0 (Ana ...) and 1 (Ben ...). With i
the task, j the persona, k the index of a dialogue and v the checkpoint, the test pairs have

    matched      -100 - 5i - 3j + 2v + k          no_dialogue    -104 - 5i - 3j
    shuffled     matched - (1 + v + j/2)          persona_given  -90 - 5i - 3j
    after turn 1 no_dialogue + 3 + v (k = 0)      so turn 1 gains 3 + v, turn 2 gains 1 + v
    facts        turn 1 brings out fact 0 if v >= 1 or j = 0; turn 2 brings out fact 1 if v = 2
    questions    turn 2 of m0 is none

and the training pairs, for k = 0, 1, 2: gold log-prob -50, -48, -49; the other persona's gold -60,
-50, -57 (j = 1) or -60 (j = 0). So selection takes k = 1, contrastive would take k = 0 for j = 1.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stargate.config.files import dump_config
from stargate.config.run import RunConfig
from stargate.evaluation.comparisons import Response
from stargate.evaluation.controls import ControlScore
from stargate.records.schemas import Row, dialogue_row, record_row
from stargate.records.store import RunStore
from stargate.types import (
    Dialogue,
    DialogueScore,
    Pair,
    Persona,
    Selection,
    StopReason,
    Task,
    TrainingExample,
    Turn,
)
from tests.fakes.data_folder import write_folder
from tests.fakes.report_values import SCRIPT, SUMMARY, eval_json

# What must never be run by a browser, nor colour a terminal.
MARKUP = f"I cook <b>rice</b> & {SCRIPT} \x1b[31mred {{{{ 7 * 7 }}}} </textarea>"
PERSONAS = ("Ana Ruiz", "Ben <i>O'Neil</i>")
FACTS = ("I live with <b>two cats</b>.", "I never eat onions.", "I rise at five.")
NUM_TURNS = 2
CAPITAL = Task("capital", "Capital of Peru?", "test", needs_question=False)
_PER_TASK = 24  # dialogues: 2 personas x (2 x 3 checkpoints + 3 x 2 training splits)
_NEEDLESS = 12  # dialogues about the one task that needs no question


def build_run(folder: Path, num_dialogues: int = 60) -> Path:
    """A finished run with an evaluation of its own and one named "strict"."""
    num_tasks = math.ceil((num_dialogues - _NEEDLESS) / _PER_TASK)
    root = _begin(folder, num_tasks)
    store = RunStore(root)
    for version in range(3):
        _write_evaluation(store, version, num_tasks)
    for iteration in range(2):
        _write_iteration(store, iteration, num_tasks)
    store.write_json("summary.json", SUMMARY)
    store.write_json("eval.json", eval_json(range(3), "the-run's-roleplayer"))
    strict = root / "evaluations" / "strict"
    strict.mkdir(parents=True)
    other = RunStore(strict)
    other.write_text("config.yaml", (root / "config.yaml").read_text())
    for version in (0, 2):
        _write_evaluation(other, version, 1)
    other.write_json("eval.json", eval_json((0, 2), "another-roleplayer"))
    return root


def build_halted_run(folder: Path) -> Path:
    """A run that died while it played its first iteration."""
    root = _begin(folder, 2)
    store = RunStore(root)
    _write_evaluation(store, 0, 2)
    pair = _pair("A", 0, 0)
    rows = [dialogue_row(pair, _dialogue(pair, 0, 0))]
    asyncio.run(store.append("t0", "dialogues", rows))
    return root


def _begin(folder: Path, num_tasks: int) -> Path:
    data = folder / "data"
    write_dataset(data, num_tasks)
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"source": str(data)},
            "rollout": {"num_dialogues": 3, "turns": [NUM_TURNS]},
            "roleplayer": {"grounding": {"type": "facts"}},
            "evaluation": {"num_dialogues": 2, "turns": [NUM_TURNS]},
            "schedule": {"num_iterations": 2},
        }
    )
    root = folder / "tiny-20260101-000000"
    root.mkdir()
    store = RunStore(root)
    store.write_text("config.yaml", dump_config(config))
    store.write_json("environment.json", {"cpu": "test", "cores": 2, "git_commit": "abc"})
    return root


def write_dataset(folder: Path, num_tasks: int) -> None:
    """Tasks, personas and golds of the splits A, B and test."""
    pairs = [_pair(s, i, j) for s in ("A", "B", "test") for j in (0, 1) for i in range(num_tasks)]
    golds = [
        {
            "task_id": pair.task.id,
            "persona_id": pair.persona.id,
            "text": pair.gold,
            "facts_used": pair.gold_facts,
        }
        for pair in pairs
    ]
    tasks = dict.fromkeys((*(pair.task for pair in pairs), CAPITAL))
    personas = dict.fromkeys(pair.persona for pair in pairs)
    rows = {"tasks": list(map(asdict, tasks)), "personas": list(map(asdict, personas))}
    write_folder(folder, **rows, golds=golds)


def _pair(split: str, i: int, j: int) -> Pair:
    name, prefix = PERSONAS[j], split.lower()
    task = Task(f"{prefix}-task{i}", f"Can you plan meal {i} <u>for me</u> ({split})?", split)
    profile = f"{name} of split {split}. {' '.join(FACTS)}"
    persona = Persona(f"{prefix}-{'ab'[j]}", name, profile, split, FACTS)
    return Pair(task, persona, f"Gold {i} for <em>{name}</em>: no onions.", (0, 1))


def _dialogue(pair: Pair, version: int, k: int, scope: str | None = None) -> Dialogue:
    """Dialogue `k` of the pair with m_`version`, in its iteration or else in an evaluation."""
    is_first, is_test = pair.persona.name == PERSONAS[0], scope is not None
    scope = scope or f"t{version}"
    facts = (version >= 1 or is_first, version == 2) if is_test else (k == 0, k == 2)
    marked = version == 2 and pair.id == "test-task0:test-a" and k == 0
    second = "I see." if version == 0 and is_test else "What do you never eat?"
    texts = (
        (f"Who lives with you, m{version}?", FACTS[0] if facts[0] else "I have no preference."),
        (second, MARKUP if marked else "No onions."),
    )
    turns = tuple(
        Turn(*(question, (1, 2, 3), StopReason.STOP), *(answer, (4, 5), StopReason.STOP), elicited)
        for (question, answer), elicited in zip(
            texts, ((0,) * facts[0], (1,) * facts[1]), strict=True
        )
    )
    return Dialogue(f"{scope}/{pair.id}/{k}", pair.id, k, NUM_TURNS, 7, version, turns, 1.0)


def _write_evaluation(store: RunStore, version: int, num_tasks: int) -> None:
    scope = f"eval-m{version}"
    places = [(i, j) for i in range(num_tasks) for j in (0, 1)]
    pairs = [_pair("test", i, j) for i, j in places]
    needless = [Pair(CAPITAL, _pair("test", 0, j).persona, None) for j in (0, 1)]
    dialogues = [
        dialogue_row(pair, _dialogue(pair, version, k, scope))
        for pair in (*pairs, *needless)
        for k in (0, 1)
    ]
    controls = [
        row for i, j in places for k in (0, 1) for row in _controls(scope, version, i, j, k)
    ]
    responses = [
        Response(
            *(f"{scope}/{pair.id}/0", pair.id, responder),
            *(f"Response of m{responder}: rice <b>without</b> onions.", 9, "stop"),
        )
        for pair in pairs
        for responder in dict.fromkeys((0, version))
    ]
    _write(store, scope, dialogues, controls=controls, responses=responses)


def _controls(scope: str, version: int, i: int, j: int, k: int) -> list[ControlScore]:
    pair, other = (_pair("test", i, persona).id for persona in (j, 1 - j))
    own = f"{scope}/{pair}/{k}"
    base = -5.0 * i - 3.0 * j
    matched = base - 100 + 2 * version + k
    shuffled = matched - (1 + version + j / 2)
    scores = [
        ControlScore("matched", pair, own, None, matched, 20),
        ControlScore("shuffled", pair, own, f"{scope}/{other}/{k}", shuffled, 20),
        ControlScore("persona_and_dialogue", pair, own, None, base - 88, 20),
    ]
    if k == 0:
        scores += [
            ControlScore("after_turn", pair, own, None, base - 104 + 3 + version, 20, 1),
            ControlScore("no_dialogue", pair, None, None, base - 104, 20),
            ControlScore("persona_given", pair, None, None, base - 90, 20),
        ]
    return scores


def _write_iteration(store: RunStore, iteration: int, num_tasks: int) -> None:
    scores, selections, examples = [], [], []
    dialogues: list[Row] = []
    golds, others = (-50.0, -48.0, -49.0), ((-60.0, -60.0, -60.0), (-60.0, -50.0, -57.0))
    for i in range(num_tasks):
        for j in (0, 1):
            pair = _pair("AB"[iteration], i, j)
            three = [_dialogue(pair, iteration, k) for k in range(3)]
            ids = tuple(dialogue.id for dialogue in three)
            dialogues += [dialogue_row(pair, dialogue) for dialogue in three]
            scores += [
                DialogueScore(ids[k], pair.id, golds[k], 20, others[j][k], 1) for k in range(3)
            ]
            selections.append(Selection(pair.id, ids[1], golds[1], ids, golds))
            text = "Trained response: rice & beans."
            examples.append(TrainingExample(pair.id, ids[1], (1, 2), (0, 1), text))
    tables = {"scores": scores, "selections": selections, "examples": examples}
    _write(store, f"t{iteration}", dialogues, **tables)
    store.append_metrics(
        {
            "event": "iteration",
            "iteration": iteration,
            "train_losses": [3.0 - iteration, 2.5 - iteration],
            "grad_norms": [1.5, 1.25],
            "learning_rates": [2e-5, 1e-5],
            "validation_loss": 2.25 if iteration else None,
            "num_examples": len(examples),
            "train_seconds": 30.0,
            "push_seconds": 1.5,
            "push_phases": {"check": 0.5, "update": 1.0},
            "dropped": {},
        }
    )


def _write(store: RunStore, scope: str, dialogues: Sequence[Row], **tables: Sequence[Any]) -> None:
    rows = {"dialogues": dialogues}
    rows |= {table: list(map(record_row, records)) for table, records in tables.items()}

    async def append() -> None:
        await asyncio.gather(*(store.append(scope, table, rows[table]) for table in rows))

    asyncio.run(append())
    store.compact(scope)
