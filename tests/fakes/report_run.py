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
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stargate.config.files import dump_config
from stargate.config.run import RunConfig
from stargate.evaluation.statistics import Measure
from stargate.records.store import RunStore

# What must never be run by a browser, nor colour a terminal.
SCRIPT = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
MARKUP = f"I cook <b>rice</b> & {SCRIPT} \x1b[31mred {{{{ 7 * 7 }}}} </textarea>"
PERSONAS = ("Ana Ruiz", "Ben <i>O'Neil</i>")
FACTS = ("I live with <b>two cats</b>.", "I never eat onions.", "I rise at five.")
NUM_TURNS = 2
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
    store.write_json("summary.json", _SUMMARY)
    store.write_json("eval.json", _eval_json(range(3), "the-run's-roleplayer"))
    strict = root / "evaluations" / "strict"
    strict.mkdir(parents=True)
    other = RunStore(strict)
    other.write_text("config.yaml", (root / "config.yaml").read_text())
    for version in (0, 2):
        _write_evaluation(other, version, 1)
    other.write_json("eval.json", _eval_json((0, 2), "another-roleplayer"))
    return root


def build_halted_run(folder: Path) -> Path:
    """A run that died while it played its first iteration."""
    root = _begin(folder, 2)
    store = RunStore(root)
    _write_evaluation(store, 0, 2)
    rows = [_dialogue("t0", 0, "A", 0, 0, 0)]
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
            "evaluation": {"num_dialogues": 2, "num_turns": NUM_TURNS},
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
    folder.mkdir(parents=True)
    tasks: list[dict[str, Any]] = []
    personas: list[dict[str, Any]] = []
    golds: list[dict[str, Any]] = []
    for split in ("A", "B", "test"):
        tasks += [
            {"id": _task(split, i), "text": _task_text(split, i), "split": split}
            for i in range(num_tasks)
        ]
        for j, name in enumerate(PERSONAS):
            text = f"{name} of split {split}. " + " ".join(FACTS)
            person = {"id": _persona(split, j), "name": name, "text": text, "split": split}
            personas.append({**person, "facts": FACTS})
            golds += [
                {
                    "task_id": _task(split, i),
                    "persona_id": _persona(split, j),
                    "text": f"Gold {i} for <em>{name}</em>: no onions.",
                    "facts_used": [0, 1],
                }
                for i in range(num_tasks)
            ]
    tasks.append(
        {"id": "capital", "text": "Capital of Peru?", "split": "test", "needs_question": False}
    )
    for file, rows in (("tasks", tasks), ("personas", personas), ("golds", golds)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{file}.jsonl").write_text(lines, encoding="utf-8")


def _task(split: str, i: int) -> str:
    return f"{split.lower()}-task{i}"


def _task_text(split: str, i: int) -> str:
    return f"Can you plan meal {i} <u>for me</u> ({split})?"


def _persona(split: str, j: int) -> str:
    return f"{split.lower()}-{'ab'[j]}"


def _dialogue(
    scope: str, version: int, split: str, i: int, j: int, k: int, *, needless: bool = False
) -> dict[str, Any]:
    task_id = "capital" if needless else _task(split, i)
    pair = f"{task_id}:{_persona(split, j)}"
    if scope.startswith("eval"):
        facts = [[0] if version >= 1 or j == 0 else [], [1] if version == 2 else []]
    else:
        facts = [[0] if k == 0 else [], [1] if k == 2 else []]
    marked = version == 2 and i == 0 and j == 0 and k == 0 and not needless
    questions = [
        f"Who lives with you, m{version}?",
        "I see." if version == 0 and scope.startswith("eval") else "What do you never eat?",
    ]
    answers = [
        FACTS[0] if facts[0] else "I have no preference.",
        MARKUP if marked else "No onions.",
    ]
    turns = [
        {
            "question": question,
            "question_ids": [1, 2, 3],
            "question_stop": "stop",
            "answer": answer,
            "answer_ids": [4, 5],
            "answer_stop": "stop",
            "elicited": elicited,
        }
        for question, answer, elicited in zip(questions, answers, facts, strict=True)
    ]
    return {
        "id": f"{scope}/{pair}/{k}",
        "pair_id": pair,
        "task_id": task_id,
        "persona_id": _persona(split, j),
        "task": "Capital of Peru?" if needless else _task_text(split, i),
        "persona_name": PERSONAS[j],
        "index": k,
        "num_turns": NUM_TURNS,
        "seed": 7,
        "policy_version": version,
        "seconds": 1.0,
        "elicited": [index for given in facts for index in given],
        "turns": turns,
    }


def _write_evaluation(store: RunStore, version: int, num_tasks: int) -> None:
    scope = f"eval-m{version}"
    places = [(i, j, k) for i in range(num_tasks) for j in range(2) for k in range(2)]
    dialogues = [_dialogue(scope, version, "test", *place) for place in places]
    needless = [
        _dialogue(scope, version, "test", 0, j, k, needless=True)
        for j in range(2)
        for k in range(2)
    ]
    controls = [row for place in places for row in _controls(scope, version, *place)]
    responses = [
        {
            "dialogue_id": row["id"],
            "pair_id": row["pair_id"],
            "responder_version": responder,
            "text": f"Response of m{responder}: rice <b>without</b> onions.",
            "num_tokens": 9,
            "stop": "stop",
        }
        for row in dialogues
        if row["index"] == 0
        for responder in dict.fromkeys((0, version))
    ]
    dialogues += needless
    _write(store, scope, dialogues=dialogues, controls=controls, responses=responses)


def _controls(scope: str, version: int, i: int, j: int, k: int) -> list[dict[str, Any]]:
    pair = f"{_task('test', i)}:{_persona('test', j)}"
    own = f"{scope}/{pair}/{k}"
    other = f"{scope}/{_task('test', i)}:{_persona('test', 1 - j)}/{k}"
    base = -5.0 * i - 3.0 * j
    matched = base - 100 + 2 * version + k
    rows: list[tuple[str, str | None, str | None, float, int | None]] = [
        ("matched", own, None, matched, None),
        ("shuffled", own, other, matched - (1 + version + j / 2), None),
        ("persona_and_dialogue", own, None, base - 88, None),
    ]
    if k == 0:
        rows += [
            ("after_turn", own, None, base - 104 + 3 + version, 1),
            ("no_dialogue", None, None, base - 104, None),
            ("persona_given", None, None, base - 90, None),
        ]
    return [
        {
            "dialogue_id": dialogue_id,
            "pair_id": pair,
            "control": control,
            "other_dialogue_id": other_id,
            "gold_logprob": value,
            "num_gold_tokens": 20,
            "num_turns": num_turns,
        }
        for control, dialogue_id, other_id, value, num_turns in rows
    ]


def _write_iteration(store: RunStore, iteration: int, num_tasks: int) -> None:
    scope, split = f"t{iteration}", "AB"[iteration]
    pairs = [(i, j) for i in range(num_tasks) for j in range(2)]
    dialogues = [_dialogue(scope, iteration, split, i, j, k) for i, j in pairs for k in range(3)]
    golds, others = (-50.0, -48.0, -49.0), ((-60.0, -60.0, -60.0), (-60.0, -50.0, -57.0))
    scores = [
        {
            "dialogue_id": row["id"],
            "pair_id": row["pair_id"],
            "gold_logprob": golds[row["index"]],
            "num_gold_tokens": 20,
            "other_gold_logprob": others[row["persona_id"].endswith("b")][row["index"]],
            "num_other_golds": 1,
        }
        for row in dialogues
    ]
    selections = [
        {
            "pair_id": three[1]["pair_id"],
            "dialogue_id": three[1]["id"],
            "gold_logprob": -48.0,
            "candidates": [row["id"] for row in three],
            "candidate_scores": list(golds),
        }
        for three in (dialogues[n : n + 3] for n in range(0, len(dialogues), 3))
    ]
    examples = [
        {
            "pair_id": row["pair_id"],
            "dialogue_id": row["dialogue_id"],
            "input_ids": [1, 2],
            "weights": [0, 1],
            "response": "Trained response: rice & beans.",
        }
        for row in selections
    ]
    tables = {"scores": scores, "selections": selections, "examples": examples}
    _write(store, scope, dialogues=dialogues, **tables)
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


def _write(store: RunStore, scope: str, **tables: Sequence[dict[str, Any]]) -> None:
    async def append() -> None:
        await asyncio.gather(*(store.append(scope, table, rows) for table, rows in tables.items()))

    asyncio.run(append())
    store.compact(scope)


_STAGES = {
    **{"setup": 20.0, "eval_m0.rollout": 30.0, "eval_m0.score": 10.0, "rollout": 200.0},
    **{"score": 60.0, "respond": 15.0, "train": 60.0, "push": 3.0},
}
_SUMMARY: dict[str, Any] = {
    "status": "finished",
    "seconds": 400.0,
    "stages": {name: {"seconds": seconds} for name, seconds in _STAGES.items()},
    "eval": {},
    "dropped": {"prompt_too_long": 2},
    "dropped_examples": {"prompt_too_long": [f"t0/x: prompt_too_long: {SCRIPT}", "t0/y: long"]},
    "data_dropped": {"empty_gold": 1},
    "peak_rss_gb": 4.5,
    "peak_rss_measure": "PSS",
    "rollout": {"num_dialogues": 24, "generated_tokens": 1200, "generated_tokens_per_s": 6.0},
    "train": {"num_examples": 4, "num_steps": 2, "tokens_per_s": 55.0},
    "push": {"seconds": 1.5, "num_engines": 2},
}

# measure -> (mean of m0, added by each checkpoint, half width of the interval)
_MEASURES: dict[str, tuple[float, float, float]] = {
    "gold_logprob": (-103.5, 2.0, 6.0),
    "gold_logprob_per_token": (-5.175, 0.1, 0.3),
    "gold_logprob_best": (-103.0, 2.0, 6.0),
    "no_dialogue": (-108.0, 0.0, 6.0),
    "persona_given": (-94.0, 0.0, 5.0),
    "persona_and_dialogue": (-92.0, 0.0, 5.0),
    "shuffled": (-104.75, 1.0, 6.0),
    "matched_minus_shuffled": (1.25, 1.0, 0.5),
    "matched_minus_shuffled_per_token": (0.0625, 0.05, 0.025),
    "matched_minus_no_dialogue": (4.5, 2.0, 1.0),
    "gain_at_turn_1": (3.0, 1.0, 0.5),
    "gain_at_turn_2": (1.0, 1.0, 0.75),
    "facts_per_dialogue": (0.5, 0.75, 0.25),
    "facts_per_turn": (0.25, 0.375, 0.125),
    "fact_coverage": (0.25, 0.375, 0.125),
    "question_rate": (0.5, 0.25, 0.1),
    "repeated_question_rate": (0.0, 0.05, 0.02),
    "tokens_per_dialogue": (20.0, 4.0, 3.0),
    "tokens_to_read": (10.0, 2.0, 1.5),
    "tokens_to_write": (10.0, 2.0, 1.5),
    "recited_facts_per_dialogue": (0.1, 0.0, 0.05),
    "recital_rate": (0.05, 0.0, 0.02),
    "unasked_facts_per_dialogue": (0.0, 0.0, 0.0),
    "needless_question_rate": (0.5, 0.25, 0.1),
    "needless_tokens_per_dialogue": (20.0, 4.0, 3.0),
}


def _eval_json(versions: Iterable[int], roleplayer: str) -> dict[str, Any]:
    """Handwritten values: the report shows what it is given, it does not compute these."""
    chosen = list(versions)
    tree: dict[str, Any] = {f"m{v}": _checkpoint(v) for v in chosen}
    tree["changes"] = {
        f"m{v}": {
            name: {**_measure(step * v, half), "num_only_before": 0, "num_only_after": 0}
            for name, (_, step, half) in _MEASURES.items()
        }
        for v in chosen
        if v > 0
    }
    trained = {"model": "embedded", "prompts": "paper", "grounding": "facts"}
    tree["about"] = {
        "split": "test",
        "data": "tiny",
        "roleplayer": {**trained, "model": roleplayer},
        "trained_with_roleplayer": {**trained, "model": "the-run's-roleplayer"},
        "num_dialogues": 2,
        "num_turns": 2,
        "seed": 0,
        "confidence": 0.95,
    }
    tree["judge"] = {
        "fit": False,
        "model": "judge-135m",
        "verdict": "the judge is UNFIT: gold_rate: must be >= 0.6, got 0.50 (n = 4)",
        "self_rate": 0.5,
        "gold_rate": 0.5,
        "order_consistency": 0.25,
        "failures": ["gold_rate: must be >= 0.6, got 0.50 (n = 4)"],
        "criteria": {
            "self_rate": _criterion(0.5, "within 0.1 of 0.5", passed=True),
            "gold_rate": _criterion(0.5, ">= 0.6", passed=False),
            "order_consistency": _criterion(0.25, ">= 0.6", passed=False),
        },
    }
    return tree


def _checkpoint(version: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: _measure(mean + step * version, half)
        for name, (mean, step, half) in _MEASURES.items()
    }
    if version:
        rate = _measure(0.5 + 0.05 * version, 0.2)
        values["win_rate"] = rate
        values["win_rate_details"] = {
            **rate,
            "lower": 0.45,
            "upper": 0.7,
            "wins": 1,
            "ties": 2,
            "losses": 1,
            "num_unparsable_verdicts": 1,
            "order_consistency": 0.25,
            "average": {**rate, "lower": 0.45, "upper": 0.7},
            "length_controlled": {"rate": 0.52, "ci_low": 0.3, "ci_high": 0.74, "reason": None},
        }
    return values


def _measure(mean: float, half: float) -> dict[str, Any]:
    return asdict(Measure(mean, mean - half, mean + half, half / 2, 8, 2, 2))


def _criterion(value: float, requirement: str, *, passed: bool) -> dict[str, Any]:
    found = {"value": value, "ci_low": None, "ci_high": None, "n": 4}
    return {**found, "requirement": requirement, "passed": passed}
