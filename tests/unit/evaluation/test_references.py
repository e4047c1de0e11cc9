"""Rows that no policy learned: what is asked and told, made once, kept for the next evaluation."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stargate.config.roleplayer import FactsGrounding
from stargate.evaluation.evaluator import evaluate
from stargate.evaluation.measures import write_evaluation
from stargate.evaluation.playing import EvaluationPairs
from stargate.evaluation.references import FOLDER, References, plan_rows, read_rows
from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from stargate.rollout.roleplayer import FactsRoleplayer
from stargate.run_context import Roles, RunContext
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Dialogue, Pair, StopReason
from tests.fakes.keyword_match import KeywordMatch
from tests.fakes.measured import ABOUT, QUICK
from tests.fakes.scripted import ScriptedGenerate, ScriptedScore, make_pair
from tests.unit.test_pair_steps import roles, run_context

FACTS = ("I drink green tea.", "I own a brown dog.", "I hate cold mornings.", "I paint at night.")
# The gold of each task uses one fact of everybody.
USED = {"t1": 1, "t2": 3}
MATCH = KeywordMatch()
K = 2


def pairs(*personas: str) -> list[Pair]:
    return [
        replace(make_pair(task=t, persona=p, facts=FACTS, gold="gold"), gold_facts=(fact,))
        for t, fact in USED.items()
        for p in personas
    ]


TEST = pairs("a", "b", "c")


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four questions, of which each brings out one fact of everybody."""
    questions = ("Any brown pets?", "Which drink is green?", "Are mornings cold?", "What at night?")
    monkeypatch.setattr("stargate.evaluation.references.stock_questions", lambda: questions)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def parts(score: ScriptedScore) -> Roles:
    grounding = FactsGrounding(voice="fact")
    roleplay = FactsRoleplayer(None, Views(load_prompts("small")), MATCH, grounding)  # type: ignore[arg-type]  # never called
    generate = ScriptedGenerate(lambda request: "Are mornings cold?")
    return replace(roles(generate=generate, score=score), roleplay=roleplay, match=MATCH)


def made(
    tmp_path: Path, model: Path, name: str, **changes: Any
) -> tuple[RunContext, ScriptedScore]:
    """An evaluation of m_0 with its rows, and what was scored for the rows."""
    context = run_context(tmp_path / name, evaluation={"num_dialogues": 1, "turns": [K]}, **changes)
    score = ScriptedScore(lambda request: -1.0)
    asyncio.run(evaluate(0, EvaluationPairs(TEST), parts(score), context))
    score.requests.clear()
    rows = context.store.read("eval-m0", "dialogues")
    maker = References(TEST, pairs("x", "y"), [model], tmp_path / "cache")
    asked = {0: [dialogue_from_row(row) for row in rows]}
    asyncio.run(maker.make(asked, parts(score), context))
    return context, score


def played(context: RunContext, row: str) -> dict[str, Dialogue]:
    store = RunStore(context.store.root / FOLDER / row)
    found = map(dialogue_from_row, store.read("records", "dialogues"))
    return {dialogue.pair_id: dialogue for dialogue in found}


def test_what_each_row_asks_and_tells(tmp_path: Path, model: Path) -> None:
    context, _ = made(tmp_path, model, "one")
    questions = {
        row: {tuple(t.question for t in d.turns) for d in played(context, row).values()}
        for row in read_rows(context.store.root)
    }
    told = {
        row: [d.elicited for d in played(context, row).values()]
        for row in read_rows(context.store.root)
    }
    assert questions["none"] == {()}
    assert questions["own_frequent"] == {("Are mornings cold?",)}  # it asks nothing else
    # Of the golds' facts, dog and night, everybody has both: the list finds half of each task's.
    assert questions["constant"] == {("Any brown pets?", "What at night?")}
    assert told["constant"] == [(1, 3)] * 6
    assert questions["per_task"] == {
        ("Any brown pets?", "Which drink is green?"),
        ("What at night?", "Any brown pets?"),
    }
    assert [d.elicited for d in played(context, "gold_facts").values()] == [(1,)] * 3 + [(3,)] * 3
    assert all(len(facts) == 2 for facts in told["random_facts"])
    assert len(set(told["random_facts"])) > 1
    first = played(context, "gold_facts")["t1:a"].turns[0]
    assert (first.answer, first.question_stop) == ("I own a brown dog.", StopReason.FIXED)


def test_rows_are_scored_as_a_checkpoint_is(tmp_path: Path, model: Path) -> None:
    context, score = made(tmp_path, model, "one")
    # Six rows: the own gold and two others' in one pass.
    assert [len(request.golds) for request in score.requests] == [3] * 6 * 6
    values = write_evaluation(context.store, TEST, len, ABOUT, QUICK)
    assert set(values["reference"]) == {
        *("none", "constant", "own_frequent", "random_facts", "gold_facts", "per_task")
    }
    constant = values["reference"]["constant"]
    assert constant["questions"] == ["Any brown pets?", "What at night?"]
    assert constant["fact_coverage"]["mean"] == 1.0
    assert values["reference"]["own_frequent"]["fact_coverage"]["mean"] == 0.0
    assert values["reference"]["gold_facts"]["contrast"]["n"] == 6
    written = json.loads((context.store.root / "eval.json").read_text())
    assert written["reference"] == values["reference"]


def test_the_second_time_costs_nothing(tmp_path: Path, model: Path) -> None:
    first, _ = made(tmp_path, model, "one")
    second, score = made(tmp_path, model, "two")
    assert score.requests == []
    for row in read_rows(first.store.root):
        assert played(first, row) == played(second, row)
    again = References(TEST, pairs("x", "y"), [model], tmp_path / "other-cache")
    asyncio.run(again.make({0: []}, parts(score), second))  # of this run, whatever the cache
    assert not {len(r.golds) for r in score.requests}


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"roleplayer": {"grounding": {"type": "facts", "min_similarity": 0.3}}}],
)
def test_another_world_has_its_own_rows(
    tmp_path: Path, model: Path, changes: Mapping[str, Any]
) -> None:
    made(tmp_path, model, "one")
    _, score = made(tmp_path, model, "two", **changes)
    assert score.requests


def test_another_model_has_its_own_rows(tmp_path: Path, model: Path) -> None:
    made(tmp_path, model, "one")
    (model / "config.json").write_text("[]")
    _, score = made(tmp_path, model, "two")
    assert len(score.requests) == 6 * 6


def test_what_can_not_be_had_is_said() -> None:
    def names(pairs: Sequence[Pair], train: Sequence[Pair], match: Any) -> tuple[list[str], str]:
        rows, [note] = asyncio.run(plan_rows(pairs, train, {0: []}, K, match, seed=0))
        return [row.name for row in rows], note

    assert names(TEST, TEST, None) == (
        ["none"],
        "facts and lists need roleplayer.grounding.type=facts",
    )
    unknown = [replace(pair, gold_facts=()) for pair in TEST]
    rows, note = names(unknown, TEST, MATCH)
    assert rows == ["none"] and note.endswith("(gold_facts)")
    rows, note = names(TEST, unknown, MATCH)
    assert rows == ["none", "random_facts", "gold_facts", "per_task"]
    assert note.startswith("a constant list needs a train split")
