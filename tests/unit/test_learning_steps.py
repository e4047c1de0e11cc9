"""What is made for an algorithm that sees all pairs of an iteration: fact values and replay."""

from dataclasses import replace
from pathlib import Path

from stargate.types import GenerateRequest, ScoreRequest
from tests.fakes.keyword_match import PAIR, KeywordMatch
from tests.fakes.scripted import END, ScriptedGenerate, ScriptedScore
from tests.unit.test_pair_steps import RecordingTrain, iterate, run_context

PAIRS = [replace(PAIR, persona=replace(PAIR.persona, id=p), gold_facts=(0,)) for p in ("p", "q")]
SETTINGS = {
    "rollout": {"num_dialogues": 2, "turns": [1]},
    "roleplayer": {"grounding": {"type": "facts"}},
    "algorithm": {"type": "turn_weighted"},
}


def ask(request: GenerateRequest) -> str:
    tea = "/t:p/0" in request.session
    return "Do you love green tea?" if tea else "What about bridges?"


def value(request: ScoreRequest) -> float:
    """The gold has 4 tokens: 8 nats more after the fact about green tea."""
    return -3.0 if "green" in "".join(map(chr, request.context_ids)) else -5.0


def test_facts_are_valued_once_and_every_question_is_replayed(tmp_path: Path) -> None:
    context, train = run_context(tmp_path, **SETTINGS), RecordingTrain()
    score = ScriptedScore(value)
    parts = {"generate": ScriptedGenerate(ask), "match": KeywordMatch(), "train": train}
    iterate(context, 0, PAIRS, score=score, **parts)
    rows = {row["pair_id"]: row["values"] for row in context.store.read("t0", "fact_values")}
    assert rows == {"t:p": [8.0, 0.0, 0.0], "t:q": [8.0, 0.0, 0.0]}
    # Of each pair 3 facts and the turn that brings nothing, in the same form; no dialogue.
    assert len(score.requests) == 2 * 4
    base = next("".join(map(chr, r.context_ids)) for r in score.requests if r.key == "t:p^0")
    assert "What else should I know about you?" in base and "None. | t?" in base
    [example] = train.examples
    assert (example.pair_id, example.dialogue_id) == ("t:p", "t0/t:p/0")
    assert max(example.weights) == 5.0 / 4  # clipped, against siblings that are worth nothing
    [measured] = [e for e in context.store.read_metrics() if e["event"] == "fact_values"]
    assert (measured["auc"], measured["num_pairs"]) == (1.0, 2)
    again = ScriptedScore(value)
    iterate(context, 0, PAIRS, score=again, **parts)
    assert not again.requests and train.examples == [example]
    iterate(context, 1, PAIRS, score=again, **parts)
    assert not again.requests  # facts keep their values


def test_each_question_is_scored_as_the_first_one_about_each_task(tmp_path: Path) -> None:
    algorithm = {"type": "turn_weighted", "recombine": "split", "fit": 0.1}
    context, train = run_context(tmp_path, **SETTINGS | {"algorithm": algorithm}), RecordingTrain()
    score = ScriptedScore(value)
    parts = {"generate": ScriptedGenerate(ask), "match": KeywordMatch(), "train": train}
    iterate(context, 0, PAIRS, score=score, **parts)
    [request] = [request for request in score.requests if "?" in request.key]
    # One task, in the words of the first pair; each wording once, with the end that it was given.
    prompt = context.chat.prompt_ids(context.views.questioner(PAIRS[0], ()))
    assert (request.key, request.context_ids) == ("t?0", prompt)
    asked = ["Do you love green tea?", "What about bridges?"]
    assert request.golds == tuple((*map(ord, question), END) for question in asked)
    assert train.examples
