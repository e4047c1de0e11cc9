"""Evaluation arithmetic on known answers."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stargate.config.run import RunConfig
from stargate.evaluation.controls import gains, shuffled_partner
from stargate.evaluation.evaluator import evaluate, plain_means, played_dialogues
from stargate.evaluation.measures import write_evaluation
from stargate.evaluation.playing import EvaluationPairs, plan_evaluation
from stargate.run_context import Roles, RunContext
from stargate.types import Dialogue, Pair, ScoreRequest, ScoreResult
from tests.fakes.measured import ABOUT, QUICK
from tests.fakes.scripted import ScriptedGenerate, ScriptedScore, make_pair
from tests.unit.test_pair_steps import roles, run_context

FACTS = ("I like tea.", "I own a dog.", "I work at night.")
PAIRS: list[Pair] = [
    make_pair(task=t, persona=p, facts=FACTS) for t in ("t1", "t2") for p in ("a", "b", "c")
]


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


def evaluated(
    version: int, pairs: EvaluationPairs, parts: Roles, context: RunContext
) -> dict[str, Any]:
    """What a run logs of a checkpoint that is evaluated."""
    asyncio.run(evaluate(version, pairs, parts, context))
    values = write_evaluation(context.store, pairs.all, len, ABOUT, QUICK)
    return plain_means(values[f"m{version}"])


def test_a_run_logs_means_with_their_errors_and_numbers() -> None:
    one = {"mean": 0.5, "standard_error": 0.1, "n": 4}
    facts = {"mean": 2.0, "standard_error": None, "n": 1}
    got = plain_means({"question_rate": one, "facts_per_dialogue": facts, "win_rate": one})
    assert {name: value for name, value in got.items() if value} == {
        **{"num_dialogues": 1, "num_turns": 4},
        **{"question_rate": 0.5, "question_rate_se": 0.1, "question_rate_n": 4},
        **{"facts_per_dialogue": 2.0, "facts_per_dialogue_n": 1},
    }
    assert (got["gold_logprob"], got["gold_logprob_se"], got["gold_logprob_n"]) == (None, None, 0)


def test_evaluate_scores_every_control_of_every_pair(tmp_path: Path) -> None:
    score = ScriptedScore(lambda request: -1.0)
    context = run_context(tmp_path, evaluation={"num_dialogues": 2, "turns": [3]})
    pairs = EvaluationPairs(PAIRS)
    got = evaluated(0, pairs, roles(score=score), context)
    assert got["num_dialogues"] == 12
    assert got["gold_logprob"] == -4.0  # "gold" has four characters
    assert [got[f"{name}_n"] for name in ("gold_logprob", "shuffled", "no_dialogue")] == [12, 12, 6]
    # The first dialogue of each pair is scored after turns 1 and 2, and with the persona given.
    assert Counter(row["control"] for row in context.store.read("eval-m0", "controls")) == {
        "matched": 12,
        "other_gold": 24,  # the task has two other personas
        "shuffled": 12,
        "no_dialogue": 6,
        "persona_given": 6,
        "persona_and_dialogue": 6,
        "after_turn": 12,
    }

    # The next checkpoint reuses the controls without a dialogue; its table is complete too.
    num_requests = len(score.requests)
    assert evaluated(1, pairs, roles(score=score), context)["no_dialogue_n"] == 6
    assert len(score.requests) - num_requests == 12 + 12 + 6 + 12
    assert len(list(context.store.read("eval-m1", "controls"))) == 78


def test_after_turn_holds_the_first_turns_only(tmp_path: Path) -> None:
    score = ScriptedScore(lambda request: -1.0)
    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "turns": [3]})
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
    small = run_context(tmp_path, evaluation={"num_dialogues": 1, "turns": [1]})
    asyncio.run(evaluate(0, EvaluationPairs(PAIRS), first, small))
    larger = run_context(tmp_path, evaluation={"num_dialogues": 3, "turns": [1]})
    got = evaluated(0, EvaluationPairs(PAIRS), second, larger)
    # With m_0's first questions, read for their fit with both tasks once.
    assert (len(first.generate.requests), len(second.generate.requests)) == (6 + 12, 12)  # type: ignore[attr-defined]
    assert (len(first.score.requests), len(second.score.requests)) == (30, 24)  # type: ignore[attr-defined]
    assert (got["num_dialogues"], got["gold_logprob_n"], got["no_dialogue_n"]) == (18, 18, 6)
    ids = [row["id"] for row in larger.store.read("eval-m0", "dialogues")]
    assert len(ids) == len(set(ids)) == 18


def test_tasks_that_need_no_question_are_played_once_and_never_scored(tmp_path: Path) -> None:
    needless = [make_pair(task="sum", persona=p, gold=None) for p in ("a", "b")]
    needless = [replace(p, task=replace(p.task, needs_question=False)) for p in needless]
    parts = roles()
    context = run_context(tmp_path, evaluation={"num_dialogues": 2, "turns": [1]})
    got = evaluated(0, EvaluationPairs(PAIRS, needless), parts, context)
    played = [row["id"] for row in context.store.read("eval-m0", "dialogues")]
    assert [name for name in sorted(played) if "sum" in name] == [
        "eval-m0/sum:a/0",
        "eval-m0/sum:b/0",
    ]
    assert got["num_dialogues"] == 12
    assert not [row for row in context.store.read("eval-m0", "controls") if "sum" in row["pair_id"]]


def test_responses_are_made_when_a_judge_will_ask(tmp_path: Path) -> None:
    parts = roles()
    context = run_context(tmp_path, evaluation={"num_dialogues": 3, "turns": [1], "judge": {}})
    asyncio.run(evaluate(0, EvaluationPairs(PAIRS), parts, context))
    rows = list(context.store.read("eval-m0", "responses"))
    # Two of m_0's per pair: the judge compares them with each other.
    assert Counter(row["dialogue_id"][-1] for row in rows) == {"0": 6, "1": 6}
    assert {row["responder_version"] for row in rows} == {0}


@pytest.mark.parametrize("instructed", [True, False])
def test_the_judged_responses_have_the_instruction_or_not_on_both_sides(
    tmp_path: Path, instructed: bool
) -> None:
    generate = ScriptedGenerate(lambda request: "q?")
    settings = {"turns": [1], "judge": {}, "response_instruction": instructed}
    context = run_context(tmp_path, evaluation=settings)
    asyncio.run(evaluate(0, EvaluationPairs(PAIRS), roles(generate=generate), context))
    see = context.views.responder if instructed else context.views.without_instruction
    asked = {r.prompt_ids for r in generate.requests if r.request_id.endswith("/response")}
    expected = {
        context.chat.prompt_ids(see(pair, dialogue.turns))
        for pair in PAIRS
        for dialogue in played_dialogues(context.store, "eval-m0")[pair.id]
    }
    assert asked == expected


def test_the_turns_of_test_dialogues_are_drawn_per_pair_and_alike_for_every_checkpoint() -> None:
    config = RunConfig.model_validate({"evaluation": {"turns": [1, 2, 3], "num_dialogues": 2}})
    pairs = EvaluationPairs([make_pair(persona=f"p{number}") for number in range(300)])
    first, second = (plan_evaluation(version, pairs, config) for version in (0, 1))
    drawn = {plan.pair.id: plan.num_turns for plan in first}
    assert all(plan.num_turns == drawn[plan.pair.id] for plan in [*first, *second])
    counts = Counter(drawn.values())
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 70


def test_a_response_by_other_weights_is_refused(tmp_path: Path) -> None:
    stale = roles(generate=ScriptedGenerate(lambda request: "q?", version=0))
    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "turns": [1], "judge": {}})
    with pytest.raises(ValueError, match="should be m_1's, the engine holds version 0"):
        asyncio.run(evaluate(1, EvaluationPairs(PAIRS), stale, context))


def test_the_shuffled_control_keeps_the_pairs_own_name(tmp_path: Path) -> None:
    """Only the dialogue is another's: the name in the gold must not give the difference away."""
    requests: dict[str, list[ScoreRequest]] = {}

    def logprob(request: ScoreRequest) -> float:
        requests.setdefault(request.key, []).append(request)
        return -1.0

    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "turns": [1]})
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
        context = run_context(tmp_path / str(version), evaluation={"turns": [2]})
        asyncio.run(evaluate(version, EvaluationPairs(PAIRS), parts, context))
        return sorted(request.sampling.seed for request in parts.generate.requests)  # type: ignore[attr-defined]

    assert seeds(0) == seeds(1)


def test_gains_need_both_ends() -> None:
    assert gains({0: -10.0, 1: -8.0, 3: -4.0}, 3) == [2.0, None, None]
    assert gains({0: -10.0, 1: -8.0, 2: -9.0}, 2) == [2.0, -1.0]
    assert gains({}, 1) == [None]


class GoldScore:
    """Scores a gold by the persona that it was written for and the one whose dialogue it follows:
    -10 nats, 3 more where they belong together, and a persona's own ease on either side.
    """

    def __init__(self, ease: dict[str, float]) -> None:
        self.requests: list[ScoreRequest] = []
        self._ease = ease

    async def __call__(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.requests += requests
        return [
            ScoreResult(
                request.key,
                tuple(
                    (self._value(request.key.split(":")[-1][0], chr(gold[0])), 0.0)
                    for gold in request.golds
                ),
            )
            for request in requests
        ]

    def _value(self, spoken: str, wanted: str) -> float:
        return -10.0 + self._ease[spoken] + 5 * self._ease[wanted] + 3.0 * (spoken == wanted)


def pairs_with_golds(**golds: str) -> list[Pair]:
    """One pair for each persona, whose gold begins with the letter of the persona."""
    return [make_pair(persona=p, gold=f"{p}gold{text}", facts=FACTS) for p, text in golds.items()]


def test_the_contrast_takes_out_what_dialogue_and_gold_have_anyway(tmp_path: Path) -> None:
    score = GoldScore({"a": -40.0, "b": 2.0, "c": 7.0})
    pairs = pairs_with_golds(a=" one", b=" two", c=" three")
    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "num_detailed_dialogues": 0})
    asyncio.run(evaluate(0, EvaluationPairs(pairs), roles(score=score), context))
    measured = write_evaluation(context.store, pairs, len, ABOUT, QUICK)["m0"]
    assert measured["contrast"]["mean"] == pytest.approx(3.0)
    assert measured["contrast"]["n"] == 3
    packed = [request for request in score.requests if len(request.golds) == 3]
    assert len(packed) == 3  # own and others' golds of a dialogue in one request
    assert measured["gold_logprob"]["n"] == 3


def test_a_gold_that_names_its_person_is_scored_under_that_name(tmp_path: Path) -> None:
    score = GoldScore({"a": 1.0, "b": 2.0, "c": 3.0})
    pairs = pairs_with_golds(a=", dear A: tea", b=" two", c=" three")  # the names are A, B, C
    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "num_detailed_dialogues": 0})
    asyncio.run(evaluate(0, EvaluationPairs(pairs), roles(score=score), context))
    after_b = [request for request in score.requests if request.key.endswith("t:b/0")]
    texts = {chr(request.golds[0][0]): text_of(request) for request in after_b}
    assert "A: t?" in texts["a"]
    assert "B: t?" in texts["b"]
    assert [len(request.golds) for request in after_b] == [2, 1, 1]  # b and c; shuffled; a


def text_of(request: ScoreRequest) -> str:
    return "".join(map(chr, request.context_ids))


def test_a_gold_that_is_too_long_takes_no_other_with_it(tmp_path: Path) -> None:
    score = GoldScore({"a": 1.0, "b": 2.0, "c": 3.0})
    pairs = pairs_with_golds(a=" one", b="x" * 10_000, c=" three")
    context = run_context(tmp_path, evaluation={"num_dialogues": 1, "num_detailed_dialogues": 0})
    asyncio.run(evaluate(0, EvaluationPairs(pairs), roles(score=score), context))
    rows = list(context.store.read("eval-m0", "controls"))
    assert {row["pair_id"] for row in rows if row["control"] == "matched"} == {"t:a", "t:c"}
    others = [(r["pair_id"], r["dialogue_id"]) for r in rows if r["control"] == "other_gold"]
    assert sorted(others) == [
        ("t:a", "eval-m0/t:b/0"),
        ("t:a", "eval-m0/t:c/0"),
        ("t:c", "eval-m0/t:a/0"),
        ("t:c", "eval-m0/t:b/0"),
    ]
    assert context.counters.dropped["score_too_long"] > 0


def test_scores_that_an_older_evaluation_lacks_are_added(tmp_path: Path) -> None:
    pairs = pairs_with_golds(a=" one", b=" two", c=" three")
    settings: dict[str, Any] = {"num_dialogues": 1, "num_detailed_dialogues": 0}
    score = GoldScore({"a": 1.0, "b": 2.0, "c": 3.0})
    for num_others in (0, 4):
        context = run_context(tmp_path, evaluation=settings | {"num_other_golds": num_others})
        asyncio.run(evaluate(0, EvaluationPairs(pairs), roles(score=score), context))
    counts = Counter(row["control"] for row in context.store.read("eval-m0", "controls"))
    assert (counts["matched"], counts["other_gold"]) == (3, 6)
    measured = write_evaluation(context.store, pairs, len, ABOUT, QUICK)["m0"]
    assert measured["contrast"]["mean"] == pytest.approx(3.0)
