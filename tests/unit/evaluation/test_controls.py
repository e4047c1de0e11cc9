"""Evaluation arithmetic on known answers."""

import asyncio
import math
from collections import Counter
from pathlib import Path

import pytest

from stargate.evaluation.checkpoint import estimate, evaluate, summarise
from stargate.evaluation.controls import ControlScore, shuffled_partner
from stargate.evaluation.playing import EvaluationPairs
from stargate.types import Dialogue, Pair, ScoreRequest
from tests.fakes.scripted import ScriptedGenerate, ScriptedScore, make_pair, make_turn
from tests.unit.test_pair_steps import roles, run_context

PAIRS: list[Pair] = [make_pair(task=t, persona=p) for t in ("t1", "t2") for p in ("a", "b", "c")]


def dialogue(pair: Pair, index: int, *turns: object) -> Dialogue:
    return Dialogue(f"d/{pair.id}/{index}", pair.id, index, len(turns), 0, 0, turns)  # type: ignore[arg-type]


def test_the_partner_is_the_next_persona_of_the_same_task() -> None:
    played = {pair.id: [dialogue(pair, 0), dialogue(pair, 1)] for pair in PAIRS}
    partners = [shuffled_partner(pair, 1, PAIRS, played) for pair in PAIRS]
    assert [p.id for p in partners if p] == [
        "d/t1:b/1",
        "d/t1:c/1",
        "d/t1:a/1",
        "d/t2:b/1",
        "d/t2:c/1",
        "d/t2:a/1",
    ]


def test_a_missing_partner_is_skipped_and_none_is_none() -> None:
    played = {pair.id: [dialogue(pair, 0)] for pair in PAIRS}
    played["t1:b"] = []
    partner = shuffled_partner(PAIRS[0], 0, PAIRS, played)
    assert partner is not None
    assert partner.pair_id == "t1:c"
    alone = [PAIRS[0]]
    assert shuffled_partner(PAIRS[0], 0, alone, played) is None


def test_matched_minus_shuffled_pairs_by_dialogue() -> None:
    scores = [
        ControlScore("matched", "p", "d1", None, -10.0, 5),
        ControlScore("shuffled", "p", "d1", "x", -14.0, 5),
        ControlScore("matched", "p", "d2", None, -20.0, 5),
        ControlScore("shuffled", "p", "d2", "x", -22.0, 5),
        ControlScore("matched", "p", "d3", None, -99.0, 5),  # has no partner: not in the difference
        ControlScore("no_dialogue", "p", None, None, -30.0, 5),
    ]
    turns = (make_turn("one?", elicited=(0, 1)), make_turn("I say.", elicited=(1,)))
    got = summarise([dialogue(PAIRS[0], 0, *turns)], scores)
    assert got["matched_minus_shuffled"] == 3.0
    assert got["matched_minus_shuffled_n"] == 2
    assert got["gold_logprob"] == pytest.approx(-43.0)
    assert got["no_dialogue"] == -30.0
    assert got["persona_given"] is None
    assert got["question_rate"] == 0.5
    assert got["facts_per_dialogue"] == 2.0  # fact 1 counts once
    assert (got["num_dialogues"], got["num_turns"]) == (1, 2)


def test_estimate_by_hand() -> None:
    got = estimate([1.0, 2.0, 3.0, 4.0])
    assert got.mean == 2.5
    assert got.standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert estimate([]).mean is None
    assert estimate([7.0]).standard_error is None


def test_evaluate_scores_every_control_of_every_pair(tmp_path: Path) -> None:
    score = ScriptedScore(lambda request: -1.0)
    context = run_context(tmp_path, evaluation={"num_dialogues": 2, "num_turns": 3})
    evaluation = asyncio.run(evaluate(0, EvaluationPairs(PAIRS), roles(score=score), context))
    got = evaluation.measures
    assert got["num_dialogues"] == 12
    assert got["gold_logprob"] == -4.0  # "gold" has four characters
    assert [got[f"{name}_n"] for name in ("gold_logprob", "shuffled", "no_dialogue")] == [12, 12, 6]
    # The first dialogue of each pair is scored after turns 1 and 2, and with the persona given.
    assert Counter(row["control"] for row in context.store.read("eval-m0", "controls")) == {
        "matched": 12,
        "shuffled": 12,
        "no_dialogue": 6,
        "persona_given": 6,
        "persona_and_dialogue": 6,
        "after_turn": 12,
    }

    # The next checkpoint reuses the controls without a dialogue; its table is complete too.
    num_requests = len(score.requests)
    again = asyncio.run(
        evaluate(1, EvaluationPairs(PAIRS), roles(score=score), context, evaluation.fixed)
    )
    assert len(score.requests) - num_requests == 12 + 12 + 6 + 12
    assert again.measures["no_dialogue_n"] == 6
    assert len(list(context.store.read("eval-m1", "controls"))) == 54


def test_after_turn_holds_the_first_turns_only(tmp_path: Path) -> None:
    score = ScriptedScore(lambda request: -1.0)
    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "num_turns": 3})
    parts = roles(
        generate=ScriptedGenerate(lambda request: f"q{request.request_id[-1]}?"), score=score
    )
    asyncio.run(evaluate(0, EvaluationPairs(PAIRS[:2]), parts, context))
    asked = {
        tuple(q for q in ("q0?", "q1?", "q2?") if q in "".join(map(chr, request.context_ids)))
        for request in score.requests
        if request.key == "eval-m0/t1:a/0"
    }
    assert asked == {("q0?",), ("q0?", "q1?"), ("q0?", "q1?", "q2?")}
    turns = [row["num_turns"] for row in context.store.read("eval-m0", "controls")]
    assert sorted(turn for turn in turns if turn is not None) == [1, 1, 2, 2]


def test_an_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    """More dialogues per pair: only the new ones are played and scored."""
    first, second = roles(), roles()
    small = run_context(tmp_path, evaluation={"num_dialogues": 1, "num_turns": 1})
    asyncio.run(evaluate(0, EvaluationPairs(PAIRS), first, small))
    larger = run_context(tmp_path, evaluation={"num_dialogues": 3, "num_turns": 1})
    got = asyncio.run(evaluate(0, EvaluationPairs(PAIRS), second, larger)).measures
    assert (len(first.generate.requests), len(second.generate.requests)) == (6, 12)  # type: ignore[attr-defined]
    assert (len(first.score.requests), len(second.score.requests)) == (30, 24)  # type: ignore[attr-defined]
    assert (got["num_dialogues"], got["gold_logprob_n"], got["no_dialogue_n"]) == (18, 18, 6)
    ids = [row["id"] for row in larger.store.read("eval-m0", "dialogues")]
    assert len(ids) == len(set(ids)) == 18


def test_tasks_that_need_no_question_are_played_once_and_never_scored(tmp_path: Path) -> None:
    needless = [make_pair(task="sum", persona=p, gold=None) for p in ("a", "b")]
    parts = roles()
    context = run_context(tmp_path, evaluation={"num_dialogues": 2, "num_turns": 1})
    got = asyncio.run(evaluate(0, EvaluationPairs(PAIRS, needless), parts, context)).measures
    played = [row["id"] for row in context.store.read("eval-m0", "dialogues")]
    assert [name for name in sorted(played) if "sum" in name] == [
        "eval-m0/sum:a/0",
        "eval-m0/sum:b/0",
    ]
    assert got["num_dialogues"] == 12
    assert not [row for row in context.store.read("eval-m0", "controls") if "sum" in row["pair_id"]]


def test_responses_are_made_when_a_judge_will_ask(tmp_path: Path) -> None:
    parts = roles()
    context = run_context(tmp_path, evaluation={"num_dialogues": 3, "num_turns": 1, "judge": {}})
    asyncio.run(evaluate(0, EvaluationPairs(PAIRS), parts, context))
    rows = list(context.store.read("eval-m0", "responses"))
    # Two of m_0's per pair: the judge compares them with each other.
    assert Counter(row["dialogue_id"][-1] for row in rows) == {"0": 6, "1": 6}
    assert {row["responder_version"] for row in rows} == {0}


def test_a_response_by_other_weights_is_refused(tmp_path: Path) -> None:
    stale = roles(generate=ScriptedGenerate(lambda request: "q?", version=0))
    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "num_turns": 1, "judge": {}})
    with pytest.raises(ValueError, match="should be m_1's, the engine holds version 0"):
        asyncio.run(evaluate(1, EvaluationPairs(PAIRS), stale, context))


def test_the_shuffled_control_keeps_the_pairs_own_name(tmp_path: Path) -> None:
    """Only the dialogue is another's: the name in the gold must not give the difference away."""
    requests: dict[str, list[ScoreRequest]] = {}

    def logprob(request: ScoreRequest) -> float:
        requests.setdefault(request.key, []).append(request)
        return -1.0

    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "num_turns": 1})
    parts = roles(score=ScriptedScore(logprob))
    asyncio.run(evaluate(0, EvaluationPairs(PAIRS[:2]), parts, context))
    openings = {
        "".join(map(chr, request.context_ids)).split("\n")[0]
        for request in requests["eval-m0/t1:a/0"]
    }
    assert openings == {"\x01A: t1?\x04", "\x01A: t1? [About a.]\x04"}


def test_checkpoints_meet_the_same_seeds(tmp_path: Path) -> None:
    def seeds(version: int) -> list[int]:
        parts = roles()
        context = run_context(tmp_path / str(version), evaluation={"num_turns": 2})
        asyncio.run(evaluate(version, EvaluationPairs(PAIRS), parts, context))
        return sorted(request.sampling.seed for request in parts.generate.requests)  # type: ignore[attr-defined]

    assert seeds(0) == seeds(1)
